package main

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"cloud.google.com/go/longrunning/autogen/longrunningpb"
	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

const (
	queued    = "queued"
	executing = "executing"
	completed = "completed"
)

// paused is how long a worker that refused an action gets no other action.
const paused = time.Second

// action is one request to execute. Equal requests at the same time share one action.
type action struct {
	ID         string
	instance   string
	digest     digest
	cacheable  bool // equal requests may share the action
	Properties map[string]string
	Priority   int32
	Stage      string
	since      time.Time // when this stage began
	Queued     time.Time
	failures   int
	worker     *remoteWorker
	workerID   string // for the metrics, also when the worker is gone
	watchers   map[chan *longrunningpb.Operation]bool
	operation  *longrunningpb.Operation // the latest operation, without its name
	redis      *backend                 // nil if the queue is in memory only
}

type remoteWorker struct {
	registration
	ID          string
	running     map[string]*action
	seen        time.Time
	used        time.Time
	pausedUntil time.Time
	paused      bool // for the metrics: it has refused an action while it ran others
	orders      chan toWorker
	lost        chan struct{} // closed when the worker is evicted
}

// scheduler has one queue, and the workers that are connected.
type scheduler struct {
	repb.UnimplementedExecutionServer
	config  schedulerConfig
	cas     map[string]store // by instance
	results store            // the store of a cache_lookup around this scheduler, or nil
	redis   *backend         // nil if the queue is in memory only

	mutex   sync.Mutex
	actions map[string]*action
	clients map[string]*action // by the name of a client's operation
	workers []*remoteWorker
	ended   int             // completed actions
	reached map[string]bool // stages that any action has been in
	wake    chan struct{}   // wakes the matching loop on Redis
}

func newScheduler(settings schedulerConfig) *scheduler {
	settings.WorkerTimeout = cmp.Or(settings.WorkerTimeout, 5)
	settings.MaxJobRetries = cmp.Or(settings.MaxJobRetries, 3)
	return &scheduler{
		config: settings, cas: map[string]store{}, actions: map[string]*action{}, clients: map[string]*action{},
		reached: map[string]bool{}, wake: make(chan struct{}, 1),
	}
}

// start starts to match and to expire actions.
func (s *scheduler) start() {
	if s.redis != nil {
		go s.redis.follow(s)
	}
	go func() {
		began := time.Now()
		for now := range time.Tick(200 * time.Millisecond) {
			s.mutex.Lock()
			s.expire()
			if s.redis == nil {
				s.matchNow(s.waiting())
				if now.Sub(began) > 5*time.Second { // the original matches this often, even without actions and workers
					passed(now, nil)
					began = now
				}
			}
			s.mutex.Unlock()
		}
	}()
}

// match gives queued actions to workers at once, or wakes the loop on Redis.
func (s *scheduler) match() {
	if s.redis == nil {
		began := time.Now()
		s.matchNow(s.waiting())
		passed(began, nil)
		return
	}
	select {
	case s.wake <- struct{}{}:
	default: // the loop is already woken
	}
}

// property fails for a property that the scheduler can't take from a worker.
func (s *scheduler) property(name, value string) error {
	_, err := strconv.ParseUint(value, 10, 64)
	if s.config.Properties[name] == "minimum" && err != nil {
		return status.Errorf(codes.InvalidArgument, "Cannot convert to platform property to u64: %s - %v", value, err)
	}
	return nil
}

// fits reports whether a worker may run an action, by NativeLink's rules.
func (s *scheduler) fits(wish *action, worker *remoteWorker) bool {
	for name, wanted := range wish.Properties {
		if s.property(name, wanted) != nil {
			return false // the action stays queued
		}
		kind := s.config.Properties[name]
		offered, there := worker.Properties[name]
		switch {
		case kind == "ignore":
		case !there:
			if kind != "" { // an undeclared property restricts only the workers that have it
				return false
			}
		case kind == "priority":
		case kind == "minimum":
			most, _ := strconv.ParseInt(offered, 10, 64)
			least, _ := strconv.ParseInt(wanted, 10, 64)
			for _, running := range worker.running {
				taken, _ := strconv.ParseInt(running.Properties[name], 10, 64)
				most -= taken
			}
			if most < least {
				return false
			}
		case offered != wanted:
			return false
		}
	}
	return true
}

// matchNow gives queued actions to workers that fit. The worker that has not been used for longest comes first.
func (s *scheduler) matchNow(waiting []*action) {
	now := time.Now()
	for _, wish := range waiting {
		var best *remoteWorker
		for _, worker := range s.workers {
			free := (worker.Slots == 0 || len(worker.running) < worker.Slots) && len(worker.orders) < cap(worker.orders)
			if free && now.After(worker.pausedUntil) && s.fits(wish, worker) && (best == nil || worker.used.Before(best.used)) {
				best = worker
			}
		}
		if best == nil {
			continue
		}
		name, err := proto.Marshal(wish.digest)
		if err != nil {
			continue
		}
		wish.workerID = best.ID
		if err := s.enter(wish, executing); err != nil {
			slog.Error("Failed to assign operation in do_try_match", "operation_id", wish.ID, "err", err)
			wish.workerID = "" // the action stays queued
			continue
		}
		best.used, best.running[wish.ID], wish.worker = time.Now(), wish, best
		best.orders <- toWorker{wish.ID, name}
	}
}

func (s *scheduler) waiting() []*action {
	found := []*action{}
	for _, wish := range s.actions {
		if wish.Stage == queued {
			found = append(found, wish)
		}
	}
	slices.SortFunc(found, func(a, b *action) int {
		return cmp.Or(cmp.Compare(b.Priority, a.Priority), a.Queued.Compare(b.Queued))
	})
	return found
}

// enter puts an action into a stage. On Redis that may fail, and the action then stays as Redis has it.
func (s *scheduler) enter(wish *action, stage string) error {
	if s.redis != nil {
		if err := s.redis.write(wish, stage, s.config.RetainCompleted); err != nil {
			return err
		}
	}
	before := wish.Stage
	wish.Stage, wish.since = stage, time.Now()
	s.reached[stage] = true
	if before != "" {
		wish.changed()
	}
	return nil
}

// tell makes a new operation of a stage the action's latest one, and sends it to the clients that wait.
func (wish *action) tell(stage repb.ExecutionStage_Value, response *repb.ExecuteResponse) {
	wish.set(stage, response)
	wish.send()
}

func (wish *action) set(stage repb.ExecutionStage_Value, response *repb.ExecuteResponse) {
	metadata, err := anypb.New(&repb.ExecuteOperationMetadata{Stage: stage, ActionDigest: wish.digest})
	if err != nil {
		panic(err) // our own messages can always be encoded
	}
	wish.operation = &longrunningpb.Operation{Metadata: metadata}
	if response != nil {
		result, err := anypb.New(response)
		if err != nil {
			panic(err)
		}
		wish.operation.Done = true
		wish.operation.Result = &longrunningpb.Operation_Response{Response: result}
	}
}

func (wish *action) send() {
	for watcher := range wish.watchers {
		select {
		case watcher <- wish.operation:
		default: // the watcher reads nothing, so it is about to end
		}
	}
}

// giveBack takes an action from its worker and queues it again, or ends it if it failed too often.
func (s *scheduler) giveBack(wish *action, failed bool, why *repb.ExecuteResponse) {
	if wish.worker != nil {
		delete(wish.worker.running, wish.ID)
	}
	wish.worker, wish.workerID = nil, ""
	before := wish.failures
	if failed {
		wish.failures++
	}
	if wish.failures > s.config.MaxJobRetries {
		s.end(wish, why)
		return
	}
	if err := s.enter(wish, queued); err != nil {
		wish.failures = before
		s.strand(wish, err)
		return
	}
	retries.Add(context.Background(), 1, wish.attributes())
	wish.tell(repb.ExecutionStage_QUEUED, nil)
	s.drop(wish)
}

// strand leaves an action in the stage that it has in Redis, as the original does when it can't write to Redis what
// became of the action. The action stays in that stage until max_action_executing_timeout_s, and its clients wait.
func (s *scheduler) strand(wish *action, why error) {
	slog.Error("Failed to update_operation on update_action", "operation_id", wish.ID, "err", why)
}

func (s *scheduler) end(wish *action, response *repb.ExecuteResponse) {
	operation := wish.operation
	wish.set(repb.ExecutionStage_COMPLETED, response)
	if err := s.enter(wish, completed); err != nil {
		wish.operation = operation
		s.strand(wish, err)
		return
	}
	wish.ended(response)
	s.ended++
	wish.send()
}

// drop ends a queued action that no client waits for any more.
func (s *scheduler) drop(wish *action) {
	if wish.Stage != queued || len(wish.watchers) > 0 || s.actions[wish.ID] == nil {
		return
	}
	if s.redis != nil {
		if err := s.redis.remove(wish); err != nil {
			return
		}
	}
	s.forget(wish)
}

func (s *scheduler) forget(wish *action) {
	delete(s.actions, wish.ID)
	maps.DeleteFunc(s.clients, func(_ string, each *action) bool { return each == wish })
}

func failure(code codes.Code, message string) *repb.ExecuteResponse {
	return &repb.ExecuteResponse{Status: status.New(code, message).Proto()}
}

func seconds(number float64) time.Duration { return time.Duration(number * float64(time.Second)) }

// expire removes silent workers and old outcomes, and gives back actions that execute for too long.
func (s *scheduler) expire() {
	for _, worker := range slices.Clone(s.workers) {
		if time.Since(worker.seen) > seconds(s.config.WorkerTimeout) {
			slog.Warn("Worker timed out, removing from pool", "worker_id", worker.ID)
			s.lose(worker, fmt.Sprintf("Worker %s timed out, removing from pool", worker.ID), false)
		}
	}
	for _, wish := range s.actions {
		switch {
		case wish.Stage == completed && time.Since(wish.since) > seconds(cmp.Or(float64(s.config.RetainCompleted), 60)):
			s.forget(wish)
		case wish.Stage == executing && s.config.ExecutingTimeout > 0 && time.Since(wish.since) > seconds(s.config.ExecutingTimeout):
			if s.redis != nil && s.redis.away() {
				continue // Redis can't be told now, so the next call does this
			}
			slog.Warn("Timing out operation", "operation_id", wish.ID, "worker_id", wish.workerID)
			s.giveBack(wish, true, failure(codes.DeadlineExceeded,
				fmt.Sprintf("Operation timed out after %v seconds", s.config.ExecutingTimeout)))
			s.match()
		}
	}
}

// lose forgets a worker. The actions that it ran go back into the queue.
func (s *scheduler) lose(worker *remoteWorker, why string, disconnected bool) {
	if !slices.Contains(s.workers, worker) {
		return
	}
	slog.Info("Evicting worker from pool",
		"worker_id", worker.ID, "is_disconnect", disconnected, "running_actions", len(worker.running), "reason", why)
	s.workers = slices.DeleteFunc(s.workers, func(other *remoteWorker) bool { return other == worker })
	reason := "evicted"
	if disconnected {
		reason = "disconnected"
	}
	workersConnected.Add(context.Background(), -1)
	disconnections.Add(context.Background(), 1, with("worker.disconnect.reason", reason))
	worker.pause(false)
	close(worker.lost)
	for _, wish := range slices.Collect(maps.Values(worker.running)) {
		if wish.worker != worker {
			continue
		}
		s.giveBack(wish, true, failure(codes.Internal, "Worker disconnected repeatedly while executing this action"))
	}
	s.match()
}

// work serves the stream of one worker for as long as the worker is connected.
func (s *scheduler) work(stream grpc.ServerStream) error {
	var first toScheduler
	if err := stream.RecvMsg(&first); err != nil {
		return err
	}
	if first.Register == nil {
		return status.Error(codes.InvalidArgument, "a worker of another kind: the stand-in's scheduler needs the stand-in's workers")
	}
	for name, value := range first.Register.Properties {
		if err := s.property(name, value); err != nil {
			slog.Error("Bad Property during connect_worker()", "worker", first.Register.Name, "err", err)
			return err
		}
	}
	worker := &remoteWorker{
		registration: *first.Register, ID: first.Register.Name + uuid.NewString(), running: map[string]*action{}, seen: time.Now(), used: time.Now(),
		orders: make(chan toWorker, 1000), lost: make(chan struct{}),
	}
	s.mutex.Lock()
	slog.Debug("Worker added", "worker_id", worker.ID, "slots", worker.Slots, "properties", worker.Properties)
	worker.orders <- toWorker{ID: worker.ID}
	s.workers = append(s.workers, worker)
	workersConnected.Add(stream.Context(), 1)
	connections.Add(stream.Context(), 1)
	s.match()
	s.mutex.Unlock()
	go func() {
		for {
			var message toScheduler
			err := stream.RecvMsg(&message)
			s.mutex.Lock()
			if err != nil {
				s.lose(worker, "Received request to remove worker", false) // as if the worker had said so
				s.mutex.Unlock()
				return
			}
			s.hear(worker, message)
			s.mutex.Unlock()
		}
	}()
	for {
		select {
		case order := <-worker.orders:
			if err := stream.SendMsg(order); err != nil {
				s.mutex.Lock()
				s.lose(worker, "Worker command failed, removing worker "+worker.ID, true)
				s.mutex.Unlock()
				return err
			}
		case <-worker.lost:
			return status.Error(codes.Aborted, "the scheduler has given this worker up")
		}
	}
}

func (s *scheduler) hear(worker *remoteWorker, message toScheduler) {
	worker.seen = time.Now()
	switch {
	case message.Started != "":
		if wish := worker.running[message.Started]; wish != nil && wish.worker == worker {
			wish.tell(repb.ExecutionStage_EXECUTING, nil)
		}
	case message.Refused != "":
		worker.pausedUntil = time.Now().Add(paused)
		wish := worker.running[message.Refused]
		delete(worker.running, message.Refused)
		worker.pause(len(worker.running) > 0)
		if wish != nil && wish.worker == worker {
			slog.Info("Worker refused the operation", "worker_id", worker.ID, "operation_id", wish.ID)
			s.giveBack(wish, false, nil)
		}
	case message.Finished != nil:
		wish := worker.running[message.Finished.ID]
		delete(worker.running, message.Finished.ID)
		worker.pause(false)
		message.Finished.Usage.used()
		if wish == nil || wish.worker != worker {
			return // the action was given to another worker meanwhile
		}
		response := &repb.ExecuteResponse{}
		if err := proto.Unmarshal(message.Finished.Response, response); err != nil {
			response = failure(codes.Internal, err.Error())
		}
		if message.Finished.Again {
			s.giveBack(wish, true, response)
		} else {
			s.end(wish, response)
			wish.worker = nil
		}
	default:
		keepalives.Add(context.Background(), 1)
		return
	}
	s.match()
}

// Execute queues an action and reports on it until it is done. A queued action that no client listens to is dropped.
func (s *scheduler) Execute(asked *repb.ExecuteRequest, stream repb.Execution_ExecuteServer) error {
	cas, err := pick(s.cas, asked.InstanceName)
	if err != nil {
		return err
	}
	wanted, command := &repb.Action{}, &repb.Command{}
	if err := fetchMessage(stream.Context(), cas, asked.ActionDigest, wanted); err != nil {
		return status.Errorf(codes.FailedPrecondition, "the action: %v", err)
	}
	platform := wanted.Platform
	if platform == nil { // older clients set the platform in the command
		if err := fetchMessage(stream.Context(), cas, wanted.CommandDigest, command); err != nil {
			return status.Errorf(codes.FailedPrecondition, "the command: %v", err)
		}
		platform = command.Platform //nolint:staticcheck // see above
	}
	if s.results != nil && !asked.SkipCacheLookup {
		if done, err := s.known(stream.Context(), asked.ActionDigest); err != nil || done != nil {
			if done != nil {
				done.Name = asked.InstanceName + "/" + uuid.NewString()
				err = stream.Send(done)
			}
			return err
		}
	}
	wish := &action{
		ID: uuid.NewString(), instance: asked.InstanceName, digest: asked.ActionDigest, cacheable: !asked.SkipCacheLookup,
		Properties: map[string]string{}, Priority: asked.ExecutionPolicy.GetPriority(), Queued: time.Now(),
		watchers: map[chan *longrunningpb.Operation]bool{}, redis: s.redis,
	}
	for _, property := range platform.GetProperties() {
		wish.Properties[property.Name] = property.Value
	}
	wish.set(repb.ExecutionStage_QUEUED, nil)
	s.mutex.Lock()
	client := uuid.NewString()
	if wish, err = s.join(wish); err != nil {
		s.mutex.Unlock()
		return status.Errorf(codes.Unavailable, "In RedisAwaitedActionDb::add_action: %v", err)
	}
	s.clients[client] = wish
	return s.follow(wish, asked.InstanceName+"/"+client, stream)
}

// known returns the operation of an action whose result is in the action cache, or nil.
func (s *scheduler) known(ctx context.Context, wanted digest) (*longrunningpb.Operation, error) {
	content, err := s.results.Get(ctx, wanted)
	if status.Code(err) == codes.NotFound {
		return nil, nil
	}
	result := &repb.ActionResult{}
	if err == nil {
		err = proto.Unmarshal(content, result)
	}
	if err != nil {
		return nil, err
	}
	done := &action{digest: wanted}
	done.set(repb.ExecutionStage_COMPLETED, &repb.ExecuteResponse{Result: result, CachedResult: true, Status: status.New(codes.OK, "").Proto()})
	return done.operation, nil
}

// join puts an action into the queue, or returns the equal action that is already there.
func (s *scheduler) join(wish *action) (*action, error) {
	for _, other := range s.actions {
		same := other.instance == wish.instance && proto.Equal(other.digest, wish.digest)
		if same && other.Stage != completed && other.cacheable && wish.cacheable {
			wish = other
		}
	}
	if wish.Stage == "" {
		if err := s.enter(wish, queued); err != nil {
			return nil, err
		}
	}
	s.actions[wish.ID] = wish
	return wish, nil
}

// WaitExecution reports on an action that is known already.
func (s *scheduler) WaitExecution(asked *repb.WaitExecutionRequest, stream repb.Execution_WaitExecutionServer) error {
	client := asked.Name[strings.LastIndex(asked.Name, "/")+1:]
	s.mutex.Lock()
	wish := s.clients[client]
	if wish == nil {
		s.mutex.Unlock()
		return status.Errorf(codes.NotFound, "Failed to find existing task")
	}
	return s.follow(wish, asked.Name, stream)
}

// follow reports on an action until it is done or its listener is gone. It unlocks the mutex that the caller locked.
func (s *scheduler) follow(wish *action, name string, stream grpc.ServerStreamingServer[longrunningpb.Operation]) error {
	news := make(chan *longrunningpb.Operation, 100)
	news <- wish.operation
	wish.watchers[news] = true
	s.match()
	s.mutex.Unlock()
	defer func() {
		s.mutex.Lock()
		delete(wish.watchers, news)
		s.drop(wish)
		s.mutex.Unlock()
	}()
	for {
		select {
		case operation := <-news:
			named := proto.CloneOf(operation)
			named.Name = name
			if err := stream.Send(named); err != nil || named.Done {
				return err
			}
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

// counts returns the number of actions by stage. Of the completed ones it counts all that there ever were.
func (s *scheduler) counts() map[string]int {
	found := map[string]int{queued: 0, executing: 0, completed: s.ended}
	for _, wish := range s.actions {
		if wish.Stage != completed {
			found[wish.Stage]++
		}
	}
	return found
}
