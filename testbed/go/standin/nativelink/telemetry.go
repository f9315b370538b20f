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

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"github.com/google/uuid"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetricgrpc"
	"go.opentelemetry.io/otel/metric"
	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"testbed/standin/reapi"
)

// The instruments have the names, units and buckets of the original. They record nothing before export was called.
var (
	meter = otel.Meter("nativelink")

	cacheOperations = counter("cache.operations", "")
	cacheIO         = counter("cache.io", "By")
	cacheItemSize   = sizes("cache.item.size")
	cacheDuration   = durations("cache.operation.duration", "ms", 0.001, 0.005, 0.01, 0.05, 0.1, 0.2, 0.5,
		1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)

	stageDuration = durations("execution.stage.duration", "s", 0.001, 0.01, 0.1, 0.5,
		1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
	totalDuration = durations("execution.total.duration", "s", 0.01, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 600, 1800, 3600, 7200)
	queueTime     = durations("execution.queue.time", "s", 0.001, 0.01, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 300, 600)
	cpuTime       = durations("execution.cpu.time", "s", 0.1, 0.5, 1, 5, 10, 30, 60, 300, 600, 1800, 3600, 7200)
	peakMemory    = sizes("execution.peak.memory", 1<<20, 1<<24, 1<<26, 1<<28, 1<<30, 1<<32, 1<<34, 1<<36)
	outputSize    = sizes("execution.output.size", 1<<10, 10<<10, 100<<10, 1<<20, 10<<20, 100<<20, 1<<30, 10<<30)
	completions   = counter("execution.completed.count", "{action}")
	transitions   = counter("execution.stage.transitions", "{transition}")
	retries       = counter("execution.retry.count", "{retry}")

	workersConnected = upDown("worker.connected.count", "{worker}")
	workersInState   = upDown("worker.state.count", "{worker}")
	connections      = counter("worker.connections", "{worker}")
	disconnections   = counter("worker.disconnections", "{worker}")
	keepalives       = counter("worker.keepalives", "{keepalive}")

	matchingPasses   = counter("scheduler.matching.passes", "{pass}")
	matchingDuration = durations("scheduler.matching.duration", "s",
		0.0001, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

	rpcDuration = durations("rpc.server.duration", "s",
		0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
	tierOperations = counter("store.tier.operations", "{operation}")
	tierIO         = counter("store.tier.io", "By")
	healthChecks   = counter("health.checks", "{check}")
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

func upDown(name, unit string) metric.Int64UpDownCounter {
	return must(meter.Int64UpDownCounter(name, metric.WithUnit(unit)))
}

func durations(name, unit string, buckets ...float64) metric.Float64Histogram {
	return must(meter.Float64Histogram(name, metric.WithUnit(unit), metric.WithExplicitBucketBoundaries(buckets...)))
}

// sizes has the buckets of the SDK, which the original also takes, if none are named.
func sizes(name string, buckets ...float64) metric.Int64Histogram {
	options := []metric.Int64HistogramOption{metric.WithUnit("By")}
	if len(buckets) > 0 {
		options = append(options, metric.WithExplicitBucketBoundaries(buckets...))
	}
	return must(meter.Int64Histogram(name, options...))
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
	connection, err := reapi.Dial(endpoint)
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

// countActions reports the number of actions by stage. A stage appears only after the first action was in it.
func (s *scheduler) countActions() error {
	observe := func(_ context.Context, into metric.Int64Observer) error {
		s.mutex.Lock()
		defer s.mutex.Unlock()
		for stage, count := range s.counts() {
			if s.reached[stage] {
				into.Observe(int64(count), with("execution.stage", stage))
			}
		}
		return nil
	}
	_, err := meter.Int64ObservableUpDownCounter(
		"execution.active.count", metric.WithUnit("{action}"), metric.WithInt64Callback(observe))
	return err
}

// attributes returns what the original says of an action wherever it keeps its queue.
func (wish *action) attributes(more ...string) metric.MeasurementOption {
	found := []attribute.KeyValue{
		attribute.String("execution.instance", wish.instance), attribute.Int("execution.priority", int(wish.Priority)),
	}
	if wish.workerID != "" {
		found = append(found, attribute.String("execution.worker_id", wish.workerID))
	}
	for pair := range slices.Chunk(more, 2) {
		found = append(found, attribute.String(pair[0], pair[1]))
	}
	return metric.WithAttributes(found...)
}

// changed counts that an action has entered its stage from another one. As in the original, the queue in memory counts
// that as well, with other attributes.
func (wish *action) changed() {
	ctx := context.Background()
	transitions.Add(ctx, 1, wish.attributes("execution.stage", wish.Stage))
	if wish.redis == nil {
		transitions.Add(ctx, 1, metric.WithAttributes(
			attribute.String("execution.instance", "unknown"), attribute.Int("execution.priority", int(wish.Priority))))
	}
}

// ended counts a completed action, again twice if the queue is in memory, and records how long its parts took.
func (wish *action) ended(response *repb.ExecuteResponse) {
	ctx, made := context.Background(), response.GetResult()
	result := "success"
	if made == nil || made.ExitCode != 0 || response.GetStatus().GetCode() != 0 {
		result = "failure"
	}
	completions.Add(ctx, 1, wish.attributes("execution.stage", completed, "execution.result", result))
	if wish.redis == nil {
		completions.Add(ctx, 1, with("execution.result", result, "execution.action_digest", blob(wish.digest)))
	}
	size := made.GetStdoutDigest().GetSizeBytes() + made.GetStderrDigest().GetSizeBytes()
	for _, file := range made.GetOutputFiles() {
		size += file.Digest.GetSizeBytes()
	}
	outputSize.Record(ctx, size, wish.attributes())
	told, queued := made.GetExecutionMetadata(), timestamppb.New(wish.Queued)
	record := func(into metric.Float64Histogram, from, to *timestamppb.Timestamp, more ...string) {
		if from != nil && to != nil {
			into.Record(ctx, to.AsTime().Sub(from.AsTime()).Seconds(), wish.attributes(more...))
		}
	}
	record(queueTime, queued, told.GetWorkerStartTimestamp())
	record(totalDuration, queued, told.GetWorkerCompletedTimestamp())
	record(stageDuration, told.GetInputFetchStartTimestamp(), told.GetInputFetchCompletedTimestamp(), "execution.stage", "input_fetch")
	record(stageDuration, told.GetExecutionStartTimestamp(), told.GetExecutionCompletedTimestamp(), "execution.stage", "execution")
	record(stageDuration, told.GetOutputUploadStartTimestamp(), told.GetOutputUploadCompletedTimestamp(), "execution.stage", "output_upload")
}

// used records what a worker says that an action used. As in the original, these have no instance.
func (u usage) used() {
	if u.PeakMemory > 0 {
		peakMemory.Record(context.Background(), u.PeakMemory, with("execution.instance", ""))
	}
	if ticks := u.CPUTime.Truncate(10 * time.Millisecond); ticks > 0 { // the kernel's ticks, which the original counts
		cpuTime.Record(context.Background(), ticks.Seconds(), with("execution.instance", ""))
	}
}

// pause counts a worker that gets no actions, because it has refused one while it ran others.
func (w *remoteWorker) pause(is bool) {
	if w.paused != is {
		w.paused = is
		workersInState.Add(context.Background(), map[bool]int64{true: 1, false: -1}[is], with("worker.state", "paused"))
	}
}

// passed counts a pass of the matching loop.
func passed(began time.Time, err error) {
	result := "ok"
	if err != nil {
		result = "error"
	}
	matchingDuration.Record(context.Background(), time.Since(began).Seconds())
	matchingPasses.Add(context.Background(), 1, with("scheduler.match.result", result))
}

// served records a call. The original names the method of its own workers.
func served(path string, began time.Time, err error) {
	if path == workerMethod {
		path = "/com.github.trace_machina.nativelink.remote_execution.WorkerApi/ConnectWorker"
	}
	service, method, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	rpcDuration.Record(context.Background(), time.Since(began).Seconds(), metric.WithAttributes(
		attribute.String("rpc.service", service), attribute.String("rpc.method", method),
		attribute.Int("rpc.grpc.status_code", int(status.Code(err)))))
}

func serveCall(ctx context.Context, request any, about *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	began := time.Now()
	answer, err := handle(ctx, request)
	served(about.FullMethod, began, err)
	return answer, err
}

// serveStream records a stream when its first answer is sent, as OK, because the original looks at the headers only.
func serveStream(server any, stream grpc.ServerStream, about *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	timed := &timedStream{ServerStream: stream, path: about.FullMethod, began: time.Now()}
	err := handle(server, timed)
	timed.answered(err)
	return err
}

type timedStream struct {
	grpc.ServerStream
	path  string
	began time.Time
	once  sync.Once
}

func (t *timedStream) answered(err error) { t.once.Do(func() { served(t.path, t.began, err) }) }

func (t *timedStream) SendMsg(message any) error {
	t.answered(nil)
	return t.ServerStream.SendMsg(message)
}
