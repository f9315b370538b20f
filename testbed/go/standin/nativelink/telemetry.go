package main

import (
	"context"
	"crypto/rand"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"

	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	metricspb "go.opentelemetry.io/proto/otlp/metrics/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	"google.golang.org/protobuf/types/known/emptypb"

	"testbed/standin/reapi"
)

// export sends the number of actions by stage to OTEL_EXPORTER_OTLP_ENDPOINT, as NativeLink does. The number is a sum
// that is not monotonic, and a stage appears only after the first action was in it. The resource is named nativelink,
// regardless of the environment.
func export(counted *scheduler) error {
	endpoint := os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT")
	if endpoint == "" {
		return nil
	}
	connection, err := reapi.Dial(endpoint)
	if err != nil {
		return err
	}
	interval := time.Minute
	if milliseconds, err := strconv.Atoi(os.Getenv("OTEL_METRIC_EXPORT_INTERVAL")); err == nil {
		interval = time.Duration(milliseconds) * time.Millisecond
	}
	resource := []*commonpb.KeyValue{}
	for pair := range strings.SplitSeq(os.Getenv("OTEL_RESOURCE_ATTRIBUTES"), ",") {
		if name, value, ok := strings.Cut(pair, "="); ok && name != "service.name" {
			resource = append(resource, attribute(name, value))
		}
	}
	resource = append(resource, attribute("service.name", "nativelink"), attribute("service.instance.id", rand.Text()))
	began := uint64(time.Now().UnixNano())
	go func() {
		for range time.Tick(interval) {
			metrics := []*metricspb.Metric{}
			if points := counted.points(began); len(points) > 0 {
				metrics = append(metrics, sum("execution.active.count", false, points))
			}
			if passes := matchingPasses(began); len(passes) > 0 {
				metrics = append(metrics, sum("scheduler.matching.passes", true, passes))
			}
			if len(metrics) == 0 {
				continue
			}
			// MetricsData has the same encoding as ExportMetricsServiceRequest, whose package needs an HTTP gateway.
			request := &metricspb.MetricsData{ResourceMetrics: []*metricspb.ResourceMetrics{{
				Resource: &resourcepb.Resource{Attributes: resource},
				ScopeMetrics: []*metricspb.ScopeMetrics{{
					Scope:   &commonpb.InstrumentationScope{Name: "nativelink"},
					Metrics: metrics,
				}},
			}}}
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			err := connection.Invoke(
				ctx, "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export", request, &emptypb.Empty{})
			cancel()
			if err != nil {
				slog.Warn("Metrics could not be sent", "endpoint", endpoint, "err", err)
			}
		}
	}()
	return nil
}

func sum(name string, monotonic bool, points []*metricspb.NumberDataPoint) *metricspb.Metric {
	return &metricspb.Metric{
		Name: name,
		Data: &metricspb.Metric_Sum{Sum: &metricspb.Sum{
			AggregationTemporality: metricspb.AggregationTemporality_AGGREGATION_TEMPORALITY_CUMULATIVE,
			IsMonotonic:            monotonic,
			DataPoints:             points,
		}},
	}
}

// matchingPasses counts as v1.6.6 does, which matches at least every 5 s, even without actions and workers.
func matchingPasses(began uint64) []*metricspb.NumberDataPoint {
	now := uint64(time.Now().UnixNano())
	passes := int64(time.Duration(now-began) / (5 * time.Second))
	if passes == 0 {
		return nil
	}
	return []*metricspb.NumberDataPoint{{
		Attributes:        []*commonpb.KeyValue{attribute("scheduler.match.result", "ok")},
		StartTimeUnixNano: began,
		TimeUnixNano:      now,
		Value:             &metricspb.NumberDataPoint_AsInt{AsInt: passes},
	}}
}

func attribute(name, value string) *commonpb.KeyValue {
	text := &commonpb.AnyValue_StringValue{StringValue: value}
	return &commonpb.KeyValue{Key: name, Value: &commonpb.AnyValue{Value: text}}
}

func (s *scheduler) points(began uint64) (points []*metricspb.NumberDataPoint) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	for stage, count := range s.counts() {
		if s.reached[stage] {
			points = append(points, &metricspb.NumberDataPoint{
				Attributes:        []*commonpb.KeyValue{attribute("execution.stage", stage)},
				StartTimeUnixNano: began,
				TimeUnixNano:      uint64(time.Now().UnixNano()),
				Value:             &metricspb.NumberDataPoint_AsInt{AsInt: int64(count)},
			})
		}
	}
	return points
}
