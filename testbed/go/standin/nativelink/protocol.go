package main

import (
	"encoding/json"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
)

// The stand-in's workers and schedulers speak a protocol of their own, which NativeLink does not know. Each worker has
// one stream, which carries JSON, at the path of the original's.

// toScheduler is a message of a worker. One field is set, except in a heartbeat, which has none.
type toScheduler struct {
	Register *registration `json:",omitempty"`
	Started  string        `json:",omitempty"` // the action passed the precondition
	Refused  string        `json:",omitempty"` // the action did not pass it
	Finished *outcome      `json:",omitempty"`
}

type registration struct {
	Name       string
	Properties map[string]string
	Slots      int // 0 means no limit
}

// outcome has the encoded ExecuteResponse of an action. Again is set if the worker could not do its part, so that
// another worker may try.
type outcome struct {
	ID       string
	Response []byte
	Again    bool
}

// toWorker is an order to run an action. The first message to a worker has no action, but the ID that the scheduler
// gave to the worker.
type toWorker struct {
	ID     string
	Action []byte `json:",omitempty"` // the encoded digest of the action
}

type jsonCodec struct{}

func (jsonCodec) Name() string                             { return "json" }
func (jsonCodec) Marshal(message any) ([]byte, error)      { return json.Marshal(message) }
func (jsonCodec) Unmarshal(text []byte, message any) error { return json.Unmarshal(text, message) }

func init() { encoding.RegisterCodec(jsonCodec{}) }

const workerMethod = "/com.github.trace_machina.nativelink.remote_execution.WorkerApi/ConnectWorker"

// workersService is the description of the only method, for servers and clients.
var workersService = grpc.ServiceDesc{
	ServiceName: "com.github.trace_machina.nativelink.remote_execution.WorkerApi",
	HandlerType: (*any)(nil),
	Streams: []grpc.StreamDesc{{
		StreamName:    "ConnectWorker",
		Handler:       func(server any, stream grpc.ServerStream) error { return server.(*scheduler).work(stream) },
		ServerStreams: true,
		ClientStreams: true,
	}},
}
