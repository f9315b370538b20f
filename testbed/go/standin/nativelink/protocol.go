package main

import (
	"encoding/json"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
)

// The stand-in's worker and scheduler speak a protocol of their own, which NativeLink does not: one stream a worker,
// with JSON in it.

// toScheduler has one field set, but for a heartbeat, which has none.
type toScheduler struct {
	Register *registration `json:",omitempty"`
	Started  string        `json:",omitempty"` // the action passed the precondition
	Refused  string        `json:",omitempty"` // it did not
	Finished *outcome      `json:",omitempty"`
}

type registration struct {
	Name       string
	Properties map[string]string
	Slots      int // 0: no limit
}

// outcome is an encoded ExecuteResponse; with Again the worker could not do its part and another one may.
type outcome struct {
	ID       string
	Response []byte
	Again    bool
}

// toWorker is an order to run an action; the first one, which has none, says under which ID the worker is known.
type toWorker struct {
	ID         string
	Action     []byte            `json:",omitempty"` // the encoded digest of the action
	Properties map[string]string `json:",omitempty"`
}

type jsonCodec struct{}

func (jsonCodec) Name() string                        { return "json" }
func (jsonCodec) Marshal(message any) ([]byte, error) { return json.Marshal(message) }
func (jsonCodec) Unmarshal(text []byte, into any) error {
	return json.Unmarshal(text, into)
}

func init() { encoding.RegisterCodec(jsonCodec{}) }

const workerMethod = "/standin.Workers/Work"

// workersService is the description of the only method, for servers and clients.
var workersService = grpc.ServiceDesc{
	ServiceName: "standin.Workers",
	HandlerType: (*any)(nil),
	Streams: []grpc.StreamDesc{{
		StreamName:    "Work",
		Handler:       func(server any, stream grpc.ServerStream) error { return server.(*scheduler).work(stream) },
		ServerStreams: true,
		ClientStreams: true,
	}},
}
