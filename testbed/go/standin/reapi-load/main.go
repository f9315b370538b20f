// Command reapi-load is a client of the Remote Execution API that makes load with actions that sleep.
//
// The client uploads the actions, waits for all of them, and prints what became of each as one JSON object. It exits
// with 1 if any action failed. With --command the actions run another command, a JSON array, in which {index} is the
// action's number and {salt} is the salt of the load, with inputs, outputs and an environment if they are given. Names and
// paths are sent as they are, so a crafted request can be tried too. With --hold SECONDS the actions are only queued. The
// client then prints {"uploaded": N} before it queues them and {"queued": N} when all are queued. It cancels them at the
// end of that time or at SIGTERM, and it also ends when the last of them ends.
//
// `reapi-load put` sends bytes to a CAS under the digest of other bytes, and `reapi-load result` a made-up action result
// (put.go). `reapi-load cas` sends requests to a CAS as fast as it answers (cas.go), and `reapi-load transfer` counts the
// bytes of files on their way to it and back (transfer.go). `reapi-load descriptors` prints the protocols (descriptors.go).
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"cloud.google.com/go/longrunning/autogen/longrunningpb"
	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"testbed/standin/reapi"
)

// outcome is the report on one action.
type outcome struct {
	Index      int     `json:"index"`
	Outcome    string  `json:"outcome"`
	Seconds    float64 `json:"seconds"`
	Executions int     `json:"executions"` // how often the action was seen to begin; 0 if the client missed it
	Retries    int     `json:"retries"`
	Line       string  `json:"line"`   // what the command wrote, which differs with each execution
	Errors     string  `json:"errors"` // what the command wrote to stderr
	// Outputs has the contents of files by path, the target of links as "-> TARGET", and "" for empty folders.
	Outputs map[string]string `json:"outputs,omitempty"`
	// Metadata is the ExecutedActionMetadata.
	Metadata json.RawMessage `json:"metadata,omitempty"`
}

// uploads is how many actions are uploaded at a time. A CAS answers late if it has to take more.
const uploads = 100

// retried has the errors after which Bazel tries again.
var retried = []codes.Code{
	codes.Unavailable, codes.NotFound, codes.Internal, codes.Aborted, codes.Unknown, codes.ResourceExhausted,
}

type load struct {
	command   *repb.Command // of each action; it sleeps if this has no arguments
	action    *repb.Action  // each of them, but for its command
	anew      bool
	retries   int
	begun     string
	execution []repb.ExecutionClient
	cache     reapi.Cache
	results   repb.ActionCacheClient // nil if the action cache isn't asked first
	queued    atomic.Int64
}

// properties has the values of --platform NAME=VALUE, which may be given several times.
type properties []*repb.Platform_Property

func (p *properties) String() string { return fmt.Sprint(*p) }

func (p *properties) Set(text string) error {
	name, value, ok := strings.Cut(text, "=")
	if !ok {
		return errors.New("it has to be NAME=VALUE")
	}
	*p = append(*p, &repb.Platform_Property{Name: name, Value: value})
	return nil
}

// inputs stores a directory with files, which can be executed if they are scripts, and keeps its digest.
func (l *load) inputs(ctx context.Context, files properties) error {
	root := &repb.Directory{}
	for _, file := range files {
		root.Files = append(root.Files, &repb.FileNode{
			Name: file.Name, Digest: reapi.Digest([]byte(file.Value)), IsExecutable: strings.HasPrefix(file.Value, "#!")})
	}
	slices.SortFunc(root.Files, func(a, b *repb.FileNode) int { return strings.Compare(a.Name, b.Name) })
	err := atOnce(uploads, len(files), func(index int) error {
		content := []byte(files[index].Value)
		return l.cache.Put(ctx, reapi.Digest(content), content)
	})
	var encoded []byte
	l.action.InputRootDigest, encoded = reapi.Encode(root)
	return errors.Join(err, l.cache.Put(ctx, l.action.InputRootDigest, encoded))
}

// upload stores an action with its command, and returns the action's digest.
func (l *load) upload(ctx context.Context, index int, seconds float64, salt string) (*repb.Digest, error) {
	script := fmt.Sprintf(": %s; read -r run < /proc/sys/kernel/random/uuid; ", salt)
	if l.begun != "" {
		script += fmt.Sprintf("umask 0; mkdir -p %[1]s; echo $run >> %[1]s/%[2]d; umask 022; ", l.begun, index)
	}
	script += fmt.Sprintf("sleep %.2f; echo action %d run $run", seconds, index)
	arguments := []string{"/bin/sh", "-c", script}
	if l.command.Arguments != nil {
		own := strings.NewReplacer("{index}", fmt.Sprint(index), "{salt}", salt)
		arguments = nil
		for _, argument := range l.command.Arguments {
			arguments = append(arguments, own.Replace(argument))
		}
	}
	command, action := proto.CloneOf(l.command), proto.CloneOf(l.action)
	command.Arguments = arguments
	digest, content := reapi.Encode(command)
	err := l.cache.Put(ctx, digest, content)
	action.CommandDigest = digest
	digest, content = reapi.Encode(action)
	return digest, errors.Join(err, l.cache.Put(ctx, digest, content))
}

// listen follows an operation's stream to its end, and returns the response or an error.
func (l *load) listen(
	stream grpc.ServerStreamingClient[longrunningpb.Operation], name *string, stage *repb.ExecutionStage_Value, told *outcome,
) (*repb.ExecuteResponse, error) {
	for {
		operation, err := stream.Recv()
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = status.Error(codes.Unavailable, "the stream ended before the action did")
			}
			return nil, err
		}
		metadata := &repb.ExecuteOperationMetadata{}
		if err := operation.GetMetadata().UnmarshalTo(metadata); err != nil && operation.GetMetadata() != nil {
			return nil, err
		}
		if *name == "" {
			l.queued.Add(1)
		}
		*name = operation.Name
		if metadata.Stage == repb.ExecutionStage_EXECUTING && *stage != metadata.Stage {
			told.Executions++
		}
		*stage = metadata.Stage
		if operation.Done {
			response := &repb.ExecuteResponse{}
			if err := operation.GetResponse().UnmarshalTo(response); err != nil {
				return nil, fmt.Errorf("%w: %v", err, operation.GetError())
			}
			return response, nil
		}
	}
}

// run executes one action, and tries again after the same errors as Bazel does.
func (l *load) run(ctx context.Context, index int, action *repb.Digest) outcome {
	told := outcome{Index: index}
	if l.results != nil {
		asked := &repb.GetActionResultRequest{InstanceName: l.cache.Instance, ActionDigest: action}
		if result, err := l.results.GetActionResult(ctx, asked); err == nil {
			return l.judge(ctx, told, result)
		}
	}
	execution := l.execution[index%len(l.execution)]
	began := time.Now()
	var name string
	var stage repb.ExecutionStage_Value
	var response *repb.ExecuteResponse
	var err error
	for {
		var stream grpc.ServerStreamingClient[longrunningpb.Operation]
		if name == "" || status.Code(err) != codes.Unavailable { // the operation is lost, or ended
			stream, err = execution.Execute(ctx, &repb.ExecuteRequest{
				InstanceName: l.cache.Instance, ActionDigest: action, SkipCacheLookup: l.anew})
		} else {
			stream, err = execution.WaitExecution(ctx, &repb.WaitExecutionRequest{Name: name})
		}
		if err == nil {
			response, err = l.listen(stream, &name, &stage, &told)
		}
		if err == nil {
			err = status.ErrorProto(response.Status)
		}
		if !slices.Contains(retried, status.Code(err)) || told.Retries == l.retries || ctx.Err() != nil {
			break
		}
		told.Retries++
		time.Sleep(time.Second)
	}
	told.Seconds = float64(time.Since(began).Milliseconds()) / 1000
	if err != nil {
		told.Outcome = "failed: " + err.Error()
		return told
	}
	return l.judge(ctx, told, response.Result)
}

// judge completes the outcome of an action from its result.
func (l *load) judge(ctx context.Context, told outcome, result *repb.ActionResult) outcome {
	var err error
	if told.Metadata, err = protojson.Marshal(result.GetExecutionMetadata()); err == nil {
		told.Line, err = l.text(ctx, result.StdoutRaw, result.StdoutDigest)
	}
	if err == nil {
		told.Errors, err = l.text(ctx, result.StderrRaw, result.StderrDigest)
	}
	if err == nil {
		told.Outputs, err = l.outputs(ctx, result)
	}
	told.Outcome = "ok"
	switch {
	case err != nil:
		told.Outcome = "failed: its output: " + err.Error()
	case result.ExitCode != 0:
		told.Outcome = fmt.Sprintf("failed: exit %d", result.ExitCode)
	case l.command.Arguments == nil && !strings.HasPrefix(told.Line, fmt.Sprintf("action %d run ", told.Index)):
		told.Outcome = "failed: that is not its output"
	}
	return told
}

// text returns what a command wrote, from its result or from the CAS.
func (l *load) text(ctx context.Context, raw []byte, digest *repb.Digest) (string, error) {
	var err error
	if len(raw) == 0 && digest.GetSizeBytes() > 0 {
		raw, err = l.cache.Get(ctx, digest)
	}
	return strings.TrimSpace(string(raw)), err
}

// outputs returns the contents of an action's outputs by path.
func (l *load) outputs(ctx context.Context, result *repb.ActionResult) (map[string]string, error) {
	found := map[string]string{}
	var failures []error
	add := func(path string, digest *repb.Digest) {
		content, err := l.cache.Get(ctx, digest)
		found[path] = string(content)
		failures = append(failures, err)
	}
	for _, file := range result.OutputFiles {
		add(file.Path, file.Digest)
	}
	links := slices.Concat(result.OutputSymlinks,
		result.OutputFileSymlinks, result.OutputDirectorySymlinks) //nolint:staticcheck // where older servers put them
	for _, link := range links {
		found[link.Path] = "-> " + link.Target
	}
	for _, folder := range result.OutputDirectories {
		content, err := l.cache.Get(ctx, folder.TreeDigest)
		tree := &repb.Tree{}
		if err = errors.Join(err, proto.Unmarshal(content, tree)); err != nil {
			return nil, err
		}
		below := map[string]*repb.Directory{}
		for _, child := range tree.Children {
			digest, _ := reapi.Encode(child)
			below[digest.Hash] = child
		}
		var walk func(path string, of *repb.Directory)
		walk = func(path string, of *repb.Directory) {
			if len(of.GetFiles())+len(of.GetSymlinks())+len(of.GetDirectories()) == 0 {
				found[path] = ""
			}
			for _, file := range of.GetFiles() {
				add(path+"/"+file.Name, file.Digest)
			}
			for _, link := range of.GetSymlinks() {
				found[path+"/"+link.Name] = "-> " + link.Target
			}
			for _, each := range of.GetDirectories() {
				walk(path+"/"+each.Name, below[each.Digest.Hash])
			}
		}
		walk(folder.Path, tree.Root)
	}
	return found, errors.Join(failures...)
}

// servers are the servers of a client, and the way to them.
type servers struct {
	cas, instance, via, authority, certificate, key string
	headers                                         reapi.Headers
}

// declare declares the options that all clients have.
func (s *servers) declare() {
	flag.StringVar(&s.cas, "cas-endpoint", "grpc://nativelink-cas:50051", "CAS")
	flag.StringVar(&s.instance, "instance", "main", "instance name")
	flag.StringVar(&s.via, "connect-to", "", "`HOST:PORT` that stands in front of all endpoints")
	flag.StringVar(&s.authority, "tls-certificate", "", "`FILE` with the CA of endpoints with grpcs://")
	flag.StringVar(&s.certificate, "tls-client-certificate", "", "`FILE` with the client's certificate")
	flag.StringVar(&s.key, "tls-client-key", "", "`FILE` with its key")
	s.headers = reapi.Headers{}
	flag.Func("header", "`NAME=VALUE` of each call (any number)", func(text string) error {
		name, value, _ := strings.Cut(text, "=")
		s.headers[name] = value
		return nil
	})
}

func (s *servers) dial(address string, options ...grpc.DialOption) (*grpc.ClientConn, error) {
	settings, err := reapi.TLS(s.authority, s.certificate, s.key)
	if err != nil {
		return nil, err
	}
	return reapi.Dial(address, s.via, settings, append(options, grpc.WithPerRPCCredentials(s.headers))...)
}

func (s *servers) cache() (reapi.Cache, error) {
	connection, err := s.dial(s.cas)
	return reapi.NewCache(connection, s.instance), err
}

func run(to *servers) error {
	var platform, environment, files properties
	var outputs []string
	flag.Var(&platform, "platform", "`NAME=VALUE` that a worker has to offer (any number)")
	actions := flag.Int("actions", 1, "how many")
	seconds := flag.String("seconds", "1-1", "how long each sleeps, `MIN-MAX`")
	command := flag.String("command", "", "`JSON` array: what each runs in the place of sleeping")
	flag.Var(&files, "input", "`NAME=TEXT`: a file that each gets; a script, which begins with #!, can be executed (any number)")
	flag.Var(&environment, "environment", "`NAME=VALUE` of each, besides PATH (any number)")
	flag.Func("output", "`PATH` of an output of each (any number)", func(path string) error {
		outputs = append(outputs, path)
		return nil
	})
	directory := flag.String("working-directory", "", "`PATH` in which each runs")
	limit := flag.Float64("action-timeout", 0, "`SECONDS` after which the worker ends each; 0 for the server's own")
	salt := flag.String("salt", fmt.Sprint(time.Now().UnixNano()), "`TEXT`: the same one makes the same actions again")
	seed := flag.Uint64("seed", 1, "of the durations")
	executor := flag.String("execute-endpoint", "grpc://nativelink-scheduler:50052", "scheduler")
	concurrency := flag.Int("concurrency", 1000, "how many at a time")
	streams := flag.Int("streams", 100, "how many share a connection, as with Bazel; NativeLink takes 200 of each at a time")
	lookup := flag.Bool("lookup", false, "ask the action cache first, as Bazel does")
	anew := flag.Bool("anew", false, "run each, whatever the action cache has")
	uncached := flag.Bool("do-not-cache", false, "ask the server to keep no result")
	retries := flag.Int("retries", 5, "of an action whose connection broke")
	begun := flag.String("begun", "", "`FOLDER` of the workers in which each action leaves a line in the file of its index when it begins")
	hold := flag.Float64("hold", 0, "only queue, and cancel after so many `SECONDS`")
	timeout := flag.Float64("timeout", 600, "`SECONDS` for all")
	flag.Parse()
	var least, most float64
	if _, err := fmt.Sscanf(*seconds, "%g-%g", &least, &most); err != nil || flag.NArg() > 0 {
		return fmt.Errorf("--seconds is MIN-MAX, and there are no other arguments: %v", err)
	}
	var words []string
	if *command != "" {
		if err := json.Unmarshal([]byte(*command), &words); err != nil {
			return fmt.Errorf("--command is a JSON array of texts: %v", err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(*timeout*float64(time.Second)))
	defer cancel()
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	storage, err := to.cache()
	if err != nil {
		return err
	}
	var execution []repb.ExecutionClient
	for range (min(*concurrency, *actions) + *streams - 1) / *streams {
		scheduler, err := to.dial(*executor)
		if err != nil {
			return err
		}
		execution = append(execution, repb.NewExecutionClient(scheduler))
	}
	// The order of its properties is part of the digest of an action, so they are sorted.
	slices.SortFunc(platform, func(a, b *repb.Platform_Property) int { return strings.Compare(a.Name, b.Name) })
	variables := []*repb.Command_EnvironmentVariable{{Name: "PATH", Value: "/usr/local/bin:/usr/bin:/bin"}}
	for _, each := range environment {
		variables = append(variables, &repb.Command_EnvironmentVariable{Name: each.Name, Value: each.Value})
	}
	slices.SortFunc(variables, func(a, b *repb.Command_EnvironmentVariable) int { return strings.Compare(a.Name, b.Name) })
	asked := &repb.Platform{Properties: platform}
	l := &load{
		command: &repb.Command{
			Arguments: words, EnvironmentVariables: variables, OutputPaths: outputs, WorkingDirectory: *directory,
			Platform: asked, //nolint:staticcheck // where older servers look
		},
		action: &repb.Action{Platform: asked, DoNotCache: *uncached}, anew: *anew, retries: *retries, begun: *begun,
		execution: execution, cache: storage,
	}
	if *limit > 0 {
		l.action.Timeout = durationpb.New(time.Duration(*limit * float64(time.Second)))
	}
	if *lookup {
		l.results = repb.NewActionCacheClient(storage.Connection)
	}
	outcomes := make([]outcome, *actions)
	digests := make([]*repb.Digest, *actions)
	if err := l.inputs(ctx, files); err != nil {
		return fmt.Errorf("upload of the inputs: %w", err)
	}
	err = atOnce(min(*concurrency, uploads), *actions, func(index int) (err error) {
		duration := least + rand.New(rand.NewPCG(*seed, uint64(index))).Float64()*(most-least)
		digests[index], err = l.upload(ctx, index, duration, *salt)
		return err
	})
	if err != nil {
		return fmt.Errorf("upload: %w", err)
	}
	execute := func(index int) error {
		outcomes[index] = l.run(ctx, index, digests[index])
		return nil
	}
	if *hold > 0 {
		fmt.Printf("{\"uploaded\": %d}\n", *actions)
		ended := make(chan struct{})
		go func() {
			_ = atOnce(*concurrency, *actions, execute) // failures are only in the outcomes
			close(ended)
		}()
		if err := l.hold(ctx, *actions, *hold, ended); err != nil {
			return err
		}
		cancel()
		<-ended
		return nil
	}
	if err := atOnce(*concurrency, *actions, execute); err != nil {
		return err
	}
	return report(outcomes)
}

// atOnce does something this many times, so many of them at a time, and returns the first failure.
func atOnce(concurrency, number int, do func(index int) error) error {
	var group errgroup.Group
	group.SetLimit(concurrency)
	for index := range number {
		group.Go(func() error { return do(index) })
	}
	return group.Wait()
}

// hold waits until all actions are queued, and then for their end, some seconds, or a signal to end.
func (l *load) hold(ctx context.Context, actions int, seconds float64, ended <-chan struct{}) error {
	for l.queued.Load() < int64(actions) {
		if ctx.Err() != nil {
			return fmt.Errorf("only %d of %d actions were queued", l.queued.Load(), actions)
		}
		time.Sleep(20 * time.Millisecond)
	}
	fmt.Printf("{\"queued\": %d}\n", actions)
	select {
	case <-ended:
	case <-ctx.Done():
	case <-time.After(time.Duration(seconds * float64(time.Second))):
	}
	return nil
}

func report(outcomes []outcome) error {
	ok := 0
	for _, each := range outcomes {
		if each.Outcome == "ok" {
			ok++
		}
	}
	failed := len(outcomes) - ok
	if err := json.NewEncoder(os.Stdout).Encode(map[string]any{"actions": outcomes, "ok": ok, "failed": failed}); err != nil {
		return err
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d actions failed", failed, len(outcomes))
	}
	return nil
}

func main() {
	modes := map[string]func(*servers) error{
		"abuse": abuse, "cas": cas, "put": put, "result": result, "transfer": transfer, "descriptors": descriptors,
	}
	do := run
	if len(os.Args) > 1 && modes[os.Args[1]] != nil {
		do, os.Args = modes[os.Args[1]], os.Args[1:]
	}
	to := &servers{}
	to.declare()
	if err := do(to); err != nil {
		fmt.Fprintln(os.Stderr, "reapi-load:", err)
		os.Exit(1)
	}
}
