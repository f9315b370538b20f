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
	digest     digest
	cacheable  bool // equal requests may share the action
	Properties map[string]string
	Stage      string
	since      time.Time // when this stage began
	Queued     time.Time
	failures   int
	worker     *remoteWorker
	workerID   string // for the metrics, also when the worker is gone
	watchers   map[chan *longrunningpb.Operation]bool
	operation  *longrunningpb.Operation // the latest operation, without its name
}

type remoteWorker struct {
	registration
	ID          string
	running     map[string]*action
	seen        time.Time
	used        time.Time
	pausedUntil time.Time
	orders      chan toWorker
	lost        chan struct{} // closed when the worker is evicted
}

// scheduler has one queue, and the workers that are connected.
type scheduler struct {
	repb.UnimplementedExecutionServer
	config   schedulerConfig
	instance string
	cas      store
	results  store    // the store of a cache_lookup around this scheduler, or nil
	redis    *backend // nil if the queue is in memory only

	mutex   sync.Mutex
	actions map[string]*action
	clients map[string]*action // by the name of a client's operation
	workers []*remoteWorker
	ended   int64           // completed actions
	reached map[string]bool // stages that any action has been in
	wake    chan struct{}   // wakes the matching loop
}

func newScheduler(settings schedulerConfig) *scheduler {
	settings.WorkerTimeout = cmp.Or(settings.WorkerTimeout, 5)
	settings.MaxJobRetries = cmp.Or(settings.MaxJobRetries, 3)
	return &scheduler{
		config: settings, actions: map[string]*action{}, clients: map[string]*action{},
		reached: map[string]bool{}, wake: make(chan struct{}, 1),
	}
}

// serve matches actions with workers and expires both, for ever. On Redis the matching loop may be dead.
func (s *scheduler) serve() {
	if s.redis != nil {
		go s.redis.listen()
	}
	if s.redis == nil || !s.redis.dead {
		go s.matchAlways()
	}
	for range time.Tick(200 * time.Millisecond) {
		s.mutex.Lock()
		s.expire()
		s.mutex.Unlock()
	}
}

// matchAlways is the matching loop. It runs whenever something has changed, and every few seconds anyway. On Redis it
// reads the queue there first.
func (s *scheduler) matchAlways() {
	every := 5 * time.Second
	if s.redis != nil && s.config.FallbackMatch != nil {
		every = time.Duration(*s.config.FallbackMatch) * time.Second
	}
	for {
		wait, err := every, error(nil)
		if s.redis != nil {
			err = s.redis.readQueue()
		}
		if err != nil {
			slog.Error("Error calling ft.aggregate", "e", err)
			wait = 100 * time.Millisecond
		} else {
			s.mutex.Lock()
			s.matchNow()
			s.mutex.Unlock()
		}
		passed(err)
		var enough <-chan time.Time // never comes if the interval is 0
		if wait > 0 {
			enough = time.After(wait)
		}
		select {
		case <-s.wake:
			time.Sleep(time.Millisecond)
		case <-enough:
		}
	}
}

// match wakes the matching loop.
func (s *scheduler) match() {
	select {
	case s.wake <- struct{}{}:
	default: // the loop is already woken
	}
}

// fits reports whether a worker may run an action, by NativeLink's rules.
func (s *scheduler) fits(wish *action, worker *remoteWorker) bool {
	for name, wanted := range wish.Properties {
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
			most, err := strconv.ParseInt(offered, 10, 64)
			least, other := strconv.ParseInt(wanted, 10, 64)
			for _, running := range worker.running {
				taken, _ := strconv.ParseInt(running.Properties[name], 10, 64)
				most -= taken
			}
			if err != nil || other != nil || most < least {
				return false
			}
		case offered != wanted:
			return false
		}
	}
	return true
}

// matchNow gives queued actions to workers that fit. The worker that has not been used for longest comes first.
func (s *scheduler) matchNow() {
	now := time.Now()
	for _, wish := range s.waiting() {
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
		if err == nil {
			err = s.enter(wish, executing)
		}
		if err != nil { // the action stays queued
			slog.Error("Failed to assign operation in do_try_match", "operation_id", wish.ID, "err", err)
			continue
		}
		best.used, best.running[wish.ID], wish.worker, wish.workerID = time.Now(), wish, best, best.ID
		best.orders <- toWorker{wish.ID, name}
	}
}

// waiting returns the queued actions, the oldest first.
func (s *scheduler) waiting() []*action {
	found := []*action{}
	for _, wish := range s.actions {
		if wish.Stage == queued {
			found = append(found, wish)
		}
	}
	slices.SortFunc(found, func(a, b *action) int { return a.Queued.Compare(b.Queued) })
	return found
}

// enter puts an action into a stage. On Redis that may fail, and the action then stays as Redis has it.
func (s *scheduler) enter(wish *action, stage string) error {
	if s.redis != nil {
		if err := s.redis.write(wish, stage, s.config.RetainCompleted); err != nil {
			return err
		}
	}
	wish.Stage, wish.since = stage, time.Now()
	s.reached[stage] = true
	return nil
}

// tell makes a new operation of a stage the action's latest one, and sends it to the clients that wait.
func (wish *action) tell(stage repb.ExecutionStage_Value, response *repb.ExecuteResponse) {
	wish.operation = operation(wish.digest, stage, response)
	for watcher := range wish.watchers {
		select {
		case watcher <- wish.operation:
		default: // the watcher reads nothing, so it is about to end
		}
	}
}

// operation describes an action in a stage, without a name.
func operation(of digest, stage repb.ExecutionStage_Value, response *repb.ExecuteResponse) *longrunningpb.Operation {
	encoded := func(message proto.Message) *anypb.Any {
		found, err := anypb.New(message)
		if err != nil {
			panic(err) // our own messages can always be encoded
		}
		return found
	}
	made := &longrunningpb.Operation{Metadata: encoded(&repb.ExecuteOperationMetadata{Stage: stage, ActionDigest: of})}
	if response != nil {
		made.Done, made.Result = true, &longrunningpb.Operation_Response{Response: encoded(response)}
	}
	return made
}

// giveBack takes an action from its worker and queues it again, or ends it if it failed too often.
func (s *scheduler) giveBack(wish *action, failed bool, why *repb.ExecuteResponse) {
	if wish.worker != nil {
		delete(wish.worker.running, wish.ID)
	}
	wish.worker = nil
	if failed && wish.failures >= s.config.MaxJobRetries {
		s.end(wish, why)
		return
	}
	if err := s.enter(wish, queued); err != nil {
		strand(wish, err)
		return
	}
	if failed {
		wish.failures++
	}
	wish.tell(repb.ExecutionStage_QUEUED, nil)
	s.drop(wish)
}

// strand leaves an action in the stage that it has in Redis, as the original does when it can't write to Redis what
// became of the action. The action stays in that stage until max_action_executing_timeout_s, and its clients wait.
func strand(wish *action, why error) {
	slog.Error("Failed to update_operation on update_action", "operation_id", wish.ID, "err", why)
}

func (s *scheduler) end(wish *action, response *repb.ExecuteResponse) {
	if err := s.enter(wish, completed); err != nil {
		strand(wish, err)
		return
	}
	result := "success"
	if response.GetResult().GetExitCode() != 0 || response.GetStatus().GetCode() != 0 {
		result = "failure"
	}
	s.count(wish, result)
	s.ended++
	wish.tell(repb.ExecutionStage_COMPLETED, response)
}

// drop ends a queued action that no client waits for any more.
func (s *scheduler) drop(wish *action) {
	if wish.Stage != queued || len(wish.watchers) > 0 || s.actions[wish.ID] == nil {
		return
	}
	if s.redis == nil || s.redis.remove(wish) == nil {
		s.forget(wish)
	}
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
			s.lose(worker, fmt.Sprintf("Worker %s timed out, removing from pool", worker.ID), false)
		}
	}
	for _, wish := range s.actions {
		took := time.Since(wish.since)
		switch {
		case wish.Stage == completed && took > seconds(cmp.Or(float64(s.config.RetainCompleted), 60)):
			s.forget(wish)
		case wish.Stage == executing && s.config.ExecutingTimeout > 0 && took > seconds(s.config.ExecutingTimeout):
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
	reason := map[bool]string{true: "disconnected", false: "evicted"}[disconnected]
	workersConnected.Add(context.Background(), -1)
	disconnections.Add(context.Background(), 1, with("worker.disconnect.reason", reason))
	close(worker.lost)
	for _, wish := range slices.Collect(maps.Values(worker.running)) {
		if wish.worker == worker {
			s.giveBack(wish, true, failure(codes.Internal, "Worker disconnected repeatedly while executing this action"))
		}
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
	worker := &remoteWorker{
		registration: *first.Register, ID: first.Register.Name + uuid.NewString(), running: map[string]*action{},
		seen: time.Now(), used: time.Now(), orders: make(chan toWorker, 1000), lost: make(chan struct{}),
	}
	worker.orders <- toWorker{ID: worker.ID}
	s.mutex.Lock()
	s.workers = append(s.workers, worker)
	s.mutex.Unlock()
	workersConnected.Add(stream.Context(), 1)
	s.match()
	go func() {
		for {
			var message toScheduler
			err := stream.RecvMsg(&message)
			s.mutex.Lock()
			if err == nil {
				s.hear(worker, message)
			} else {
				s.lose(worker, "Received request to remove worker", false) // as if the worker had said so
			}
			s.mutex.Unlock()
			if err != nil {
				return
			}
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

// hear acts on what a worker says. It may name an action that was given to another worker meanwhile.
func (s *scheduler) hear(worker *remoteWorker, message toScheduler) {
	worker.seen = time.Now()
	take := func(id string) *action {
		wish := worker.running[id]
		delete(worker.running, id)
		return wish
	}
	switch {
	case message.Started != "":
		if wish := worker.running[message.Started]; wish != nil {
			wish.tell(repb.ExecutionStage_EXECUTING, nil)
		}
	case message.Refused != "":
		worker.pausedUntil = time.Now().Add(paused)
		time.AfterFunc(paused, s.match)
		if wish := take(message.Refused); wish != nil {
			slog.Info("Worker refused the operation", "worker_id", worker.ID, "operation_id", wish.ID)
			s.giveBack(wish, false, nil)
		}
		s.match()
	case message.Finished != nil:
		response := &repb.ExecuteResponse{}
		if err := proto.Unmarshal(message.Finished.Response, response); err != nil {
			response = failure(codes.Internal, err.Error())
		}
		if wish := take(message.Finished.ID); wish != nil && message.Finished.Again {
			s.giveBack(wish, true, response)
		} else if wish != nil {
			wish.worker = nil
			s.end(wish, response)
		}
		s.match()
	}
}

// Execute queues an action and reports on it until it is done. A queued action that no client listens to is dropped.
func (s *scheduler) Execute(asked *repb.ExecuteRequest, stream repb.Execution_ExecuteServer) error {
	if asked.InstanceName != s.instance {
		return unserved(asked.InstanceName)
	}
	wanted, command := &repb.Action{}, &repb.Command{}
	err := fetchMessage(stream.Context(), s.cas, asked.ActionDigest, wanted)
	if err == nil && wanted.Platform == nil { // older clients set the platform in the command
		err = fetchMessage(stream.Context(), s.cas, wanted.CommandDigest, command)
		wanted.Platform = command.Platform //nolint:staticcheck // see above
	}
	if err != nil {
		return status.Errorf(codes.FailedPrecondition, "the action or its command: %v", err)
	}
	client := uuid.NewString()
	name := asked.InstanceName + "/" + client
	if s.results != nil && !asked.SkipCacheLookup {
		if content, err := s.results.Get(stream.Context(), asked.ActionDigest); err == nil {
			found := &repb.ActionResult{}
			if err := proto.Unmarshal(content, found); err != nil {
				return err
			}
			done := operation(asked.ActionDigest, repb.ExecutionStage_COMPLETED,
				&repb.ExecuteResponse{Result: found, CachedResult: true, Status: status.New(codes.OK, "").Proto()})
			done.Name = name
			return stream.Send(done)
		} else if status.Code(err) != codes.NotFound {
			return err
		}
	}
	wish := &action{
		ID: uuid.NewString(), digest: asked.ActionDigest, cacheable: !asked.SkipCacheLookup,
		Properties: map[string]string{}, Queued: time.Now(),
		watchers:  map[chan *longrunningpb.Operation]bool{},
		operation: operation(asked.ActionDigest, repb.ExecutionStage_QUEUED, nil),
	}
	for _, property := range wanted.Platform.GetProperties() {
		wish.Properties[property.Name] = property.Value
	}
	s.mutex.Lock()
	if wish, err = s.join(wish); err != nil {
		s.mutex.Unlock()
		return status.Errorf(codes.Unavailable, "In RedisAwaitedActionDb::add_action: %v", err)
	}
	s.clients[client] = wish
	return s.follow(wish, name, stream)
}

// join puts an action into the queue, or returns the equal action that is already there.
func (s *scheduler) join(wish *action) (*action, error) {
	for _, other := range s.actions {
		same := proto.Equal(other.digest, wish.digest)
		if same && other.Stage != completed && other.cacheable && wish.cacheable {
			return other, nil
		}
	}
	if err := s.enter(wish, queued); err != nil {
		return nil, err
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
