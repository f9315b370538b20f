package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// One tool has at most mostTools processes, and each of them answers mostRequests requests.
const (
	mostTools    = 4
	mostRequests = 200
)

// tools has the processes of persistent workers that a worker has started. They are started in the work directory
// itself, with the worker's environment, and files that they leave there stay.
type tools struct {
	folder string
	mutex  sync.Mutex
	idle   map[string][]*tool
	count  map[string]int
}

type tool struct {
	process  *exec.Cmd
	requests int
	into     io.WriteCloser
	from     *bufio.Reader
}

type workRequest struct {
	Arguments  []string `json:"arguments,omitempty"`
	RequestID  int      `json:"requestId"`
	Cancel     bool     `json:"cancel"`
	Verbosity  int      `json:"verbosity"`
	SandboxDir string   `json:"sandboxDir,omitempty"`
}

type workResponse struct {
	ExitCode int32  `json:"exitCode"`
	Output   string `json:"output"`
}

// take returns an idle process of a tool, or a new one.
func (t *tools) take(key string, command []string) (*tool, error) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	if t.idle == nil {
		t.idle, t.count = map[string][]*tool{}, map[string]int{}
	}
	if waiting := t.idle[key]; len(waiting) > 0 {
		t.idle[key] = waiting[:len(waiting)-1]
		return waiting[len(waiting)-1], nil
	}
	if t.count[key] >= mostTools {
		return nil, status.Errorf(codes.ResourceExhausted, "Persistent worker pool for %s is at capacity (%d workers)", key, mostTools)
	}
	made := &tool{process: exec.Command(command[0], slices.Concat(command[1:], []string{"--persistent_worker"})...)}
	made.process.Dir = t.folder
	into, err := made.process.StdinPipe()
	from, other := made.process.StdoutPipe()
	if err = errors.Join(err, other); err == nil {
		err = made.process.Start()
	}
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "Spawning persistent worker %s: %v", command[0], err)
	}
	made.into, made.from = into, bufio.NewReader(from)
	t.count[key]++
	return made, nil
}

// giveBack keeps a process for the next request, or ends it.
func (t *tools) giveBack(key string, used *tool, healthy bool) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	if used.requests++; healthy && used.requests < mostRequests {
		t.idle[key] = append(t.idle[key], used)
		return
	}
	t.count[key]--
	_ = used.into.Close()
	_ = used.process.Process.Kill()
	go func() { _ = used.process.Wait() }()
}

// ask has a persistent worker execute an action. The arguments before the first one that begins with @ are the command
// of the process, and the others are the request.
func (w *worker) ask(
	ctx context.Context, command *repb.Command, protocol, folder string, longest time.Duration,
	metadata *repb.ExecutedActionMetadata, used *usage,
) (*repb.ActionResult, error) {
	if protocol != "json" {
		return nil, status.Errorf(codes.InvalidArgument, "the stand-in has no persistent workers of protocol %q, only json", protocol)
	}
	split := len(command.Arguments)
	for index, argument := range command.Arguments {
		if index > 0 && strings.HasPrefix(argument, "@") {
			split = index
			break
		}
	}
	key := fmt.Sprintf("%q", command.Arguments[:split])
	process, err := w.tools.take(key, command.Arguments[:split])
	if err != nil {
		slog.Info("Falling back to one-shot execution; persistent worker unavailable", "err", err)
		return w.execute(ctx, command, folder, longest, metadata, used)
	}
	request, err := json.Marshal(workRequest{Arguments: command.Arguments[split:], SandboxDir: folder})
	if err != nil {
		return nil, err
	}
	metadata.ExecutionStartTimestamp = timestamppb.Now()
	type answer struct {
		response workResponse
		err      error
	}
	answered := make(chan answer, 1)
	go func() {
		var told answer
		if _, told.err = process.into.Write(append(request, '\n')); told.err == nil {
			var line []byte
			if line, told.err = process.from.ReadBytes('\n'); told.err == nil {
				told.err = json.Unmarshal(line, &told.response)
			}
		}
		answered <- told
	}()
	select {
	case told := <-answered:
		w.tools.giveBack(key, process, told.err == nil)
		if told.err != nil {
			return nil, status.Errorf(codes.Internal, "Dispatching action to persistent worker %s: %v", key, told.err)
		}
		metadata.ExecutionCompletedTimestamp, metadata.OutputUploadStartTimestamp = timestamppb.Now(), timestamppb.Now()
		slog.Info("Persistent worker command complete", "args", listed(command.Arguments), "pid", process.process.Process.Pid)
		result := &repb.ActionResult{ExitCode: told.response.ExitCode, ExecutionMetadata: metadata}
		if result.StdoutDigest, err = w.upload(context.WithoutCancel(ctx), nil); err == nil {
			result.StderrDigest, err = w.upload(context.WithoutCancel(ctx), []byte(told.response.Output))
		}
		return result, err
	case <-time.After(longest):
		err = status.Errorf(codes.DeadlineExceeded, "it ran longer than %v", longest)
	case <-ctx.Done():
		err = ctx.Err()
	}
	w.tools.giveBack(key, process, false)
	return nil, err
}
