package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"testbed/standin/reapi"
)

const heartbeat = time.Second

// worker runs actions in folders of its work directory.
type worker struct {
	config  workerConfig
	id      atomic.Value // the scheduler's name for this worker
	folder  string
	longest time.Duration
	cas, ac store
	// reportDelay is for tests: the time between the removal of an action's folder and the report of its result.
	reportDelay time.Duration
}

func newWorker(settings workerConfig, named *stores) (made *worker, err error) {
	made = &worker{config: settings, folder: string(settings.WorkDirectory)}
	made.cas = named.get("cas_fast_slow_store", settings.CAS)
	if settings.Upload.AC != "" {
		made.ac = named.get("ac_store", settings.Upload.AC)
	}
	made.longest = cmp.Or(seconds(max(settings.Longest, settings.LongestOld)), 20*time.Minute)
	if made.reportDelay, err = time.ParseDuration(cmp.Or(os.Getenv("NATIVELINK_STANDIN_REPORT_DELAY"), "0") + "s"); err != nil {
		return nil, err
	}
	return made, errors.Join(named.failed, os.RemoveAll(made.folder), os.MkdirAll(made.folder, 0o755))
}

// serve connects to the scheduler, and connects again a second after each connection has ended. Each time it reads the
// certificates again.
func (w *worker) serve() {
	for {
		connection, err := dial(string(w.config.Endpoint.URI), w.config.Endpoint.TLS)
		if err == nil {
			err = errors.Join(w.connected(connection), connection.Close())
		}
		slog.Error("Worker disconnected from scheduler, reconnecting", "err", err)
		time.Sleep(time.Second)
	}
}

// connected registers the worker and runs the actions that the scheduler sends. They end with the connection.
func (w *worker) connected(connection *grpc.ClientConn) error {
	ctx, cancel := context.WithCancel(context.Background())
	running := sync.WaitGroup{}
	defer running.Wait()
	defer cancel()
	stream, err := connection.NewStream(ctx, &workersService.Streams[0], workerMethod,
		grpc.CallContentSubtype("json"), grpc.WaitForReady(false))
	if err != nil {
		return err
	}
	var mutex sync.Mutex
	send := func(message toScheduler) {
		mutex.Lock()
		defer mutex.Unlock()
		if err := stream.SendMsg(message); err != nil {
			cancel() // the reason comes from RecvMsg
		}
	}
	offer := registration{string(w.config.Name), map[string]string{}, w.config.Slots}
	for name, property := range w.config.Properties {
		for _, value := range property.Values {
			offer.Properties[name] = value // the last value counts
		}
	}
	send(toScheduler{Register: &offer})
	var first toWorker
	if err := stream.RecvMsg(&first); err != nil {
		return err
	}
	w.id.Store(first.ID)
	slog.Info("Worker registered with scheduler", "worker_id", first.ID)
	running.Go(func() {
		for ctx.Err() == nil {
			time.Sleep(heartbeat)
			send(toScheduler{})
		}
	})
	for {
		var order toWorker
		if err := stream.RecvMsg(&order); err != nil {
			return err
		}
		running.Go(func() { w.do(ctx, order, send) })
	}
}

// do runs one action. As in the original, the action's folder is made after a read from the CAS, and removed before the
// result is written and reported.
func (w *worker) do(ctx context.Context, order toWorker, send func(toScheduler)) {
	if script := w.config.Precondition; script != "" {
		check := exec.CommandContext(ctx, string(script))
		check.Env = []string{}
		if output, err := check.CombinedOutput(); err != nil {
			slog.Info("The precondition script refused the operation", "operation_id", order.ID, "err", err, "output", string(output))
			send(toScheduler{Refused: order.ID})
			return
		}
	}
	send(toScheduler{Started: order.ID})
	home := filepath.Join(w.folder, order.ID)
	digest, action, result := &repb.Digest{}, &repb.Action{}, &repb.ActionResult{}
	err := proto.Unmarshal(order.Action, digest)
	if err == nil {
		err = fetchMessage(ctx, w.cas, digest, action)
	}
	if err == nil {
		result, err = w.run(ctx, action, home)
	}
	if removed := os.RemoveAll(home); removed != nil {
		slog.Error("The action's directory could not be removed", "err", removed)
	}
	time.Sleep(w.reportDelay)
	if err == nil && result.ExitCode == 0 && !action.DoNotCache && w.ac != nil {
		content, _ := proto.Marshal(result)
		if err := w.ac.Put(ctx, digest, content); err != nil {
			slog.Error("Error saving action in store", "err", err)
		}
	}
	encoded, _ := proto.Marshal(&repb.ExecuteResponse{Result: result, Status: status.Convert(err).Proto()})
	// A timeout or a wrong request is the action's fault, so that trying again would not help.
	fault := []codes.Code{codes.OK, codes.DeadlineExceeded, codes.InvalidArgument, codes.NotFound}
	again := !slices.Contains(fault, status.Code(err))
	if err == nil {
		slog.Info("Command complete", "operation_id", order.ID, "exit_code", fmt.Sprint(result.GetExitCode()))
	} else {
		slog.Error("Error executing action", "operation_id", order.ID, "err", err)
	}
	send(toScheduler{Finished: &outcome{order.ID, encoded, again}})
}

// run makes the action's folder, runs the command there and stores its outputs.
func (w *worker) run(ctx context.Context, action *repb.Action, home string) (*repb.ActionResult, error) {
	longest := w.longest
	if action.Timeout != nil {
		longest = action.Timeout.AsDuration()
	}
	command := &repb.Command{}
	if err := fetchMessage(ctx, w.cas, action.CommandDigest, command); err != nil {
		return nil, err
	}
	if len(command.Arguments) == 0 {
		return nil, status.Error(codes.InvalidArgument, "its command is empty")
	}
	root := filepath.Join(home, "work")
	if err := w.furnish(ctx, action.InputRootDigest, root); err != nil {
		return nil, err
	}
	folder := filepath.Join(root, command.WorkingDirectory)
	outputs := slices.Concat(command.OutputPaths, command.OutputFiles, command.OutputDirectories) //nolint:staticcheck // older clients
	for _, output := range outputs {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(folder, output)), 0o755); err != nil {
			return nil, err
		}
	}
	slog.Info("Executing command", "args", command.Arguments)
	result, err := w.execute(ctx, command, folder, longest)
	if err != nil {
		return nil, err
	}
	for _, output := range outputs {
		if err := w.collect(ctx, filepath.Join(folder, output), output, result); err != nil {
			return nil, err
		}
	}
	return result, nil
}

func (w *worker) execute(
	ctx context.Context, command *repb.Command, folder string, longest time.Duration,
) (*repb.ActionResult, error) {
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	arguments := command.Arguments
	entrypoint := string(w.config.Entrypoint)
	if entrypoint != "" {
		arguments = slices.Concat([]string{entrypoint}, arguments)
	}
	program := arguments[0]
	if !strings.Contains(program, "/") {
		program, _ = exec.LookPath(program)
	}
	var stdout, stderr strings.Builder
	process := exec.CommandContext(ctx, program)
	process.Path, process.Err = program, nil // a relative path is relative to the folder
	process.Args, process.Dir, process.Env = arguments, folder, []string{}
	for name, value := range w.config.Environment {
		if value.Value != nil {
			process.Env = append(process.Env, name+"="+string(*value.Value))
		}
	}
	for _, variable := range command.EnvironmentVariables { // the last value of a name counts
		process.Env = append(process.Env, variable.Name+"="+variable.Value)
	}
	process.Stdout, process.Stderr = &stdout, &stderr
	process.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	process.Cancel = func() error {
		if entrypoint != "" { // which the original ends alone
			return process.Process.Kill()
		}
		return syscall.Kill(-process.Process.Pid, syscall.SIGKILL)
	}
	process.WaitDelay = 30 * time.Second
	metadata := &repb.ExecutedActionMetadata{Worker: w.id.Load().(string), ExecutionStartTimestamp: timestamppb.Now()}
	err := process.Run()
	metadata.ExecutionCompletedTimestamp = timestamppb.Now()
	var exited *exec.ExitError
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return nil, status.Errorf(codes.DeadlineExceeded, "it ran longer than %v", longest)
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil && !errors.As(err, &exited):
		return nil, status.Errorf(codes.InvalidArgument, "%q: %v", command.Arguments[0], err)
	}
	result := &repb.ActionResult{ExitCode: int32(process.ProcessState.ExitCode()), ExecutionMetadata: metadata}
	if result.StdoutDigest, err = w.upload(context.WithoutCancel(ctx), []byte(stdout.String())); err != nil {
		return nil, err
	}
	result.StderrDigest, err = w.upload(context.WithoutCancel(ctx), []byte(stderr.String()))
	return result, err
}

func (w *worker) upload(ctx context.Context, content []byte) (digest, error) {
	name := reapi.Digest(content)
	return name, w.cas.Put(ctx, name, content)
}

// furnish makes a folder with the content of a Directory.
func (w *worker) furnish(ctx context.Context, from digest, folder string) error {
	wanted := &repb.Directory{}
	if err := fetchMessage(ctx, w.cas, from, wanted); err != nil {
		return err
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	for _, file := range wanted.Files {
		content, err := fetch(ctx, w.cas, file.Digest)
		if err != nil {
			return err
		}
		mode := os.FileMode(0o444)
		if file.IsExecutable {
			mode = 0o555
		}
		path := filepath.Join(folder, file.Name)
		if err := errors.Join(os.WriteFile(path, content, mode), os.Chmod(path, mode)); err != nil {
			return err
		}
	}
	for _, link := range wanted.Symlinks {
		if err := os.Symlink(link.Target, filepath.Join(folder, link.Name)); err != nil {
			return err
		}
	}
	for _, below := range wanted.Directories {
		if err := w.furnish(ctx, below.Digest, filepath.Join(folder, below.Name)); err != nil {
			return err
		}
	}
	return nil
}

// collect stores an output, if it exists, and adds it to the result. The stand-in has files only.
func (w *worker) collect(ctx context.Context, path, name string, result *repb.ActionResult) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	} else if !info.Mode().IsRegular() {
		return status.Errorf(codes.InvalidArgument, "the output %s is not a file, and the stand-in has no others", name)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	stored, err := w.upload(ctx, content)
	result.OutputFiles = append(result.OutputFiles, &repb.OutputFile{
		Path: name, Digest: stored, IsExecutable: info.Mode()&0o100 != 0})
	return err
}
