package main

import (
	"cmp"
	"crypto/rand"
	"log"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"cloud.google.com/go/longrunning/autogen/longrunningpb"
	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
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

// How long an outcome can still be asked for by WaitExecution, and a worker that refused an action gets no other.
const (
	remembered = time.Minute
	paused     = time.Second
)

// action is one wish to execute; equal wishes at a time are one.
type action struct {
	ID         string
	instance   string
	digest     digest
	Properties map[string]string
	Priority   int32
	Stage      string
	since      time.Time // in this stage
	Queued     time.Time
	starts     int
	failures   int
	worker     *remoteWorker
	watchers   map[chan *longrunningpb.Operation]bool
	operation  *longrunningpb.Operation // the latest
}

type remoteWorker struct {
	registration
	running     map[string]*action
	seen        time.Time
	used        time.Time
	pausedUntil time.Time
	orders      chan toWorker
	lost        chan struct{} // closed when it counts no more
}

// scheduler is one queue, and the workers that are connected.
type scheduler struct {
	repb.UnimplementedExecutionServer
	config schedulerConfig
	cas    map[string]store // by instance

	mutex   sync.Mutex
	actions map[string]*action
	workers []*remoteWorker
	totals  totals
	reached map[string]bool // stages that any action was in
}

type totals struct {
	Completed int `json:"completed"`
	// Actions that passed a worker's precondition more than once.
	StartedMoreThanOnce int `json:"started_more_than_once"`
	// Times that an action's worker went away while it ran.
	Lost int `json:"lost"`
}

func newScheduler(settings schedulerConfig) *scheduler {
	if settings.WorkerTimeout == 0 {
		settings.WorkerTimeout = 5
	}
	made := &scheduler{
		config: settings, cas: map[string]store{}, actions: map[string]*action{}, reached: map[string]bool{},
	}
	go func() {
		for range time.Tick(200 * time.Millisecond) {
			made.mutex.Lock()
			made.expire()
			made.match()
			made.mutex.Unlock()
		}
	}()
	return made
}

// fits says whether a worker may run an action, by NativeLink's rules.
func (s *scheduler) fits(wish *action, worker *remoteWorker) bool {
	for name, wanted := range wish.Properties {
		offered, there := worker.Properties[name]
		switch kind := s.config.Properties[name]; {
		case kind == "ignore":
		case !there:
			if kind != "" { // one that is not declared restricts only the workers that have it
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

// match gives queued actions to the workers that fit, the one first that was not used for longest.
func (s *scheduler) match() {
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
		if err != nil {
			continue
		}
		best.used, best.running[wish.ID], wish.worker = time.Now(), wish, best
		s.enter(wish, executing)
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

func (s *scheduler) enter(wish *action, stage string) {
	wish.Stage, wish.since = stage, time.Now()
	s.reached[stage] = true
}

// tell makes an operation of a stage the latest, and sends it to those who wait.
func (wish *action) tell(stage repb.ExecutionStage_Value, response *repb.ExecuteResponse) {
	metadata, err := anypb.New(&repb.ExecuteOperationMetadata{Stage: stage, ActionDigest: wish.digest})
	if err != nil {
		panic(err) // a message of ours that can't be encoded
	}
	wish.operation = &longrunningpb.Operation{Name: wish.ID, Metadata: metadata}
	if response != nil {
		result, err := anypb.New(response)
		if err != nil {
			panic(err)
		}
		wish.operation.Done = true
		wish.operation.Result = &longrunningpb.Operation_Response{Response: result}
	}
	for watcher := range wish.watchers {
		select {
		case watcher <- wish.operation:
		default: // it reads nothing, so it is about to end
		}
	}
}

// giveBack takes an action from its worker; into the queue again, or, if it failed too often, to its end.
func (s *scheduler) giveBack(wish *action, failed bool, why *repb.ExecuteResponse) {
	delete(wish.worker.running, wish.ID)
	wish.worker = nil
	most := 3
	if s.config.MaxJobRetries != nil {
		most = *s.config.MaxJobRetries
	}
	if failed {
		wish.failures++
	}
	if wish.failures > most {
		s.end(wish, why)
		return
	}
	s.enter(wish, queued)
	wish.tell(repb.ExecutionStage_QUEUED, nil)
	s.drop(wish)
}

func (s *scheduler) end(wish *action, response *repb.ExecuteResponse) {
	s.enter(wish, completed)
	s.totals.Completed++
	if wish.starts > 1 {
		s.totals.StartedMoreThanOnce++
	}
	wish.tell(repb.ExecutionStage_COMPLETED, response)
}

// drop forgets a queued action that nobody waits for any more.
func (s *scheduler) drop(wish *action) {
	if wish.Stage == queued && len(wish.watchers) == 0 {
		delete(s.actions, wish.ID)
	}
}

func failure(code codes.Code, message string) *repb.ExecuteResponse {
	return &repb.ExecuteResponse{Status: status.New(code, message).Proto()}
}

// expire ends what has had its time: silent workers, too long executions, and remembered outcomes.
func (s *scheduler) expire() {
	seconds := func(number float64) time.Duration { return time.Duration(number * float64(time.Second)) }
	for _, worker := range slices.Clone(s.workers) {
		if time.Since(worker.seen) > seconds(s.config.WorkerTimeout) {
			s.lose(worker, "it is silent")
		}
	}
	for _, wish := range s.actions {
		switch {
		case wish.Stage == completed && time.Since(wish.since) > remembered:
			delete(s.actions, wish.ID)
		case wish.Stage == executing && s.config.ExecutingTimeout > 0 && time.Since(wish.since) > seconds(s.config.ExecutingTimeout):
			s.giveBack(wish, true, failure(codes.DeadlineExceeded, "it ran longer than max_action_executing_timeout_s"))
		}
	}
}

// lose forgets a worker. What it ran goes back into the queue.
func (s *scheduler) lose(worker *remoteWorker, why string) {
	if !slices.Contains(s.workers, worker) {
		return
	}
	log.Printf("stand-in: worker %s is gone, it ran %d: %s", worker.Name, len(worker.running), why)
	s.workers = slices.DeleteFunc(s.workers, func(other *remoteWorker) bool { return other == worker })
	close(worker.lost)
	for _, wish := range slices.Collect(maps.Values(worker.running)) {
		s.totals.Lost++
		s.giveBack(wish, true, failure(codes.Internal, "its workers were lost too often"))
	}
	s.match()
}

// work is one worker's stream, as long as it is connected.
func (s *scheduler) work(stream grpc.ServerStream) error {
	var first toScheduler
	if err := stream.RecvMsg(&first); err != nil {
		return err
	}
	if first.Register == nil {
		return status.Error(codes.InvalidArgument, "a worker of another kind: the stand-in's scheduler needs the stand-in's workers")
	}
	worker := &remoteWorker{
		registration: *first.Register, running: map[string]*action{}, seen: time.Now(), used: time.Now(),
		orders: make(chan toWorker, 1000), lost: make(chan struct{}),
	}
	s.mutex.Lock()
	log.Printf("stand-in: worker %s: %d slots, %v", worker.Name, worker.Slots, worker.Properties)
	s.workers = append(s.workers, worker)
	s.match()
	s.mutex.Unlock()
	go func() {
		for {
			var message toScheduler
			err := stream.RecvMsg(&message)
			s.mutex.Lock()
			if err != nil {
				s.lose(worker, err.Error())
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
		if wish := worker.running[message.Started]; wish != nil {
			wish.starts++
			wish.tell(repb.ExecutionStage_EXECUTING, nil)
		}
	case message.Refused != "":
		worker.pausedUntil = time.Now().Add(paused)
		if wish := worker.running[message.Refused]; wish != nil {
			log.Printf("stand-in: worker %s refuses %s", worker.Name, wish.ID)
			s.giveBack(wish, false, nil)
		}
	case message.Finished != nil:
		wish := worker.running[message.Finished.ID]
		if wish == nil {
			return // it was given to another one meanwhile
		}
		response := &repb.ExecuteResponse{}
		if err := proto.Unmarshal(message.Finished.Response, response); err != nil {
			response = failure(codes.Internal, err.Error())
		}
		if message.Finished.Again {
			s.giveBack(wish, true, response)
		} else {
			delete(worker.running, wish.ID)
			s.end(wish, response)
		}
	default:
		return
	}
	s.match()
}

// Execute queues an action and tells about it until it is done. A queued action is dropped when nobody listens.
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
	if platform == nil { // where older clients say it
		if err := fetchMessage(stream.Context(), cas, wanted.CommandDigest, command); err != nil {
			return status.Errorf(codes.FailedPrecondition, "the command: %v", err)
		}
		platform = command.Platform //nolint:staticcheck // see above
	}
	s.mutex.Lock()
	var wish *action
	for _, other := range s.actions {
		same := other.instance == asked.InstanceName && proto.Equal(other.digest, asked.ActionDigest)
		if same && other.Stage != completed && !asked.SkipCacheLookup && !wanted.DoNotCache {
			wish = other
		}
	}
	if wish == nil {
		wish = &action{
			ID: rand.Text(), instance: asked.InstanceName, digest: asked.ActionDigest, Properties: map[string]string{},
			Priority: asked.ExecutionPolicy.GetPriority(), Queued: time.Now(), watchers: map[chan *longrunningpb.Operation]bool{},
		}
		for _, property := range platform.GetProperties() {
			wish.Properties[property.Name] = property.Value
		}
		s.actions[wish.ID] = wish
		s.enter(wish, queued)
		wish.tell(repb.ExecutionStage_QUEUED, nil)
	}
	return s.follow(wish, stream)
}

// WaitExecution tells about an action that is known already.
func (s *scheduler) WaitExecution(asked *repb.WaitExecutionRequest, stream repb.Execution_WaitExecutionServer) error {
	s.mutex.Lock()
	wish := s.actions[asked.Name]
	if wish == nil {
		s.mutex.Unlock()
		return status.Errorf(codes.NotFound, "no operation %s", asked.Name)
	}
	return s.follow(wish, stream)
}

// follow tells about an action until it is done, or its listener is gone. It takes the mutex locked and unlocks it.
func (s *scheduler) follow(wish *action, stream grpc.ServerStreamingServer[longrunningpb.Operation]) error {
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
			if err := stream.Send(operation); err != nil || operation.Done {
				return err
			}
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

// counts are the actions by stage: the completed ones ever, and of the others those that are.
func (s *scheduler) counts() map[string]int {
	found := map[string]int{queued: 0, executing: 0, completed: s.totals.Completed}
	for _, wish := range s.actions {
		if wish.Stage != completed {
			found[wish.Stage]++
		}
	}
	return found
}

type workerState struct {
	Name    string `json:"name"`
	Running int    `json:"running"`
}

type state struct {
	Queued    int `json:"queued"`
	Executing int `json:"executing"`
	totals
	Workers []workerState `json:"workers"`
}

// state is what GET /standin/state answers.
func (s *scheduler) state() state {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	counts := s.counts()
	found := state{Queued: counts[queued], Executing: counts[executing], totals: s.totals, Workers: []workerState{}}
	for _, worker := range s.workers {
		found.Workers = append(found.Workers, workerState{worker.Name, len(worker.running)})
	}
	return found
}
