package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetricgrpc"
	"go.opentelemetry.io/otel/metric"
	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"

	"testbed/standin/reapi"
)

// The instruments have the names, units and buckets of the original. They are those that alerts and tests need. They
// record nothing before export was called.
var (
	meter = otel.Meter("nativelink")

	cacheOperations  = counter("cache.operations", "")
	completions      = counter("execution.completed.count", "{action}")
	disconnections   = counter("worker.disconnections", "{worker}")
	matchingPasses   = counter("scheduler.matching.passes", "{pass}")
	tierOperations   = counter("store.tier.operations", "{operation}")
	tierIO           = counter("store.tier.io", "By")
	healthChecks     = counter("health.checks", "{check}")
	workersConnected = must(meter.Int64UpDownCounter("worker.connected.count", metric.WithUnit("{worker}")))
	rpcDuration      = must(meter.Float64Histogram("rpc.server.duration", metric.WithUnit("s"),
		metric.WithExplicitBucketBoundaries(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)))
)

// must panics for an instrument that is not valid.
func must[T any](made T, err error) T {
	if err != nil {
		panic(err)
	}
	return made
}

func counter(name, unit string) metric.Int64Counter {
	return must(meter.Int64Counter(name, metric.WithUnit(unit)))
}

// with returns attributes from pairs of a key and a value.
func with(pairs ...string) metric.MeasurementOption {
	found := []attribute.KeyValue{}
	for pair := range slices.Chunk(pairs, 2) {
		found = append(found, attribute.String(pair[0], pair[1]))
	}
	return metric.WithAttributes(found...)
}

// export sends all metrics to OTEL_EXPORTER_OTLP_ENDPOINT every OTEL_METRIC_EXPORT_INTERVAL, as NativeLink does. The
// resource is named nativelink, regardless of the environment.
func export() error {
	endpoint := os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT")
	if endpoint == "" {
		return nil
	}
	connection, err := reapi.Dial(endpoint, "", nil)
	if err != nil {
		return err
	}
	ctx := context.Background()
	exporter, err := otlpmetricgrpc.New(ctx,
		otlpmetricgrpc.WithGRPCConn(connection), otlpmetricgrpc.WithRetry(otlpmetricgrpc.RetryConfig{Enabled: false}))
	described, other := resource.New(ctx, resource.WithFromEnv(), resource.WithAttributes(
		attribute.String("service.name", "nativelink"), attribute.String("service.instance.id", uuid.NewString())))
	if err = errors.Join(err, other); err != nil {
		return err
	}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		slog.Warn("Metrics could not be sent", "endpoint", endpoint, "err", err)
	}))
	otel.SetMeterProvider(sdk.NewMeterProvider(
		sdk.WithReader(sdk.NewPeriodicReader(exporter)), sdk.WithResource(described)))
	return nil
}

// countActions reports the number of actions by stage. A stage appears only after the first action was in it, and
// completed has all that there ever were.
func (s *scheduler) countActions() error {
	observe := func(_ context.Context, into metric.Int64Observer) error {
		s.mutex.Lock()
		defer s.mutex.Unlock()
		counts := map[string]int64{}
		for stage := range s.reached {
			counts[stage] = 0
		}
		for _, wish := range s.actions {
			counts[wish.Stage]++
		}
		counts[completed] = s.ended
		for stage, count := range counts {
			if s.reached[stage] {
				into.Observe(count, with("execution.stage", stage))
			}
		}
		return nil
	}
	_, err := meter.Int64ObservableUpDownCounter(
		"execution.active.count", metric.WithUnit("{action}"), metric.WithInt64Callback(observe))
	return err
}

// count counts a completed action. As in the original, the queue in memory counts it a second time, by its digest.
func (s *scheduler) count(wish *action, result string) {
	completions.Add(context.Background(), 1, metric.WithAttributes(
		attribute.String("execution.instance", s.instance), attribute.Int("execution.priority", 0),
		attribute.String("execution.worker_id", wish.workerID), attribute.String("execution.stage", completed),
		attribute.String("execution.result", result)))
	if s.redis == nil {
		completions.Add(context.Background(), 1, with("execution.result", result, "execution.action_digest", blob(wish.digest)))
	}
}

// passed counts a pass of the matching loop.
func passed(err error) {
	result := "ok"
	if err != nil {
		result = "error"
	}
	matchingPasses.Add(context.Background(), 1, with("scheduler.match.result", result))
}

// calls records each call when its first answer is sent, as OK, or at its end, because the original looks at the
// headers only.
type calls struct{}

type call struct {
	path  string
	began time.Time
	once  sync.Once
}

func (calls) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (calls) HandleConn(context.Context, stats.ConnStats)                       {}

func (calls) TagRPC(ctx context.Context, about *stats.RPCTagInfo) context.Context {
	return context.WithValue(ctx, calls{}, &call{path: about.FullMethodName, began: time.Now()})
}

func (calls) HandleRPC(ctx context.Context, event stats.RPCStats) {
	var err error
	switch event := event.(type) {
	case *stats.OutPayload:
	case *stats.End:
		err = event.Error
	default:
		return
	}
	of := ctx.Value(calls{}).(*call)
	of.once.Do(func() {
		service, method, _ := strings.Cut(strings.TrimPrefix(of.path, "/"), "/")
		rpcDuration.Record(context.Background(), time.Since(of.began).Seconds(), metric.WithAttributes(
			attribute.String("rpc.service", service), attribute.String("rpc.method", method),
			attribute.Int("rpc.grpc.status_code", int(status.Code(err)))))
	})
}
