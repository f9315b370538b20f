// Command nativelink is a STAND-IN for TraceMachina's NativeLink, for machines that cannot have its image.
//
// It reads the configuration file that is its only argument, refuses what the JSON Schema in NATIVELINK_SCHEMA (a file,
// optional) refuses, and is a CAS, a scheduler or a worker, as that file says, for any client of the Remote Execution
// API. It does as the original does where the manifests count on it: see the README beside. It is small, not fast: blobs
// travel whole through memory, nothing is evicted, and its workers and schedulers understand one another only.
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	bspb "google.golang.org/genproto/googleapis/bytestream"
	"google.golang.org/grpc"

	"testbed/standin/reapi"
)

// node is what a configuration makes of this process.
type node struct {
	stores     stores
	schedulers map[string]*scheduler
	mirrors    []*mirror
}

func (n *node) handler(wanted serverConfig) (http.Handler, error) {
	services := grpc.NewServer(grpc.MaxRecvMsgSize(reapi.MaxMessage), grpc.MaxSendMsgSize(reapi.MaxMessage))
	cached := &cache{
		cas: map[string]store{}, streams: map[string]store{}, ac: map[string]store{},
		readOnly: map[string]bool{}, executes: map[string]bool{},
	}
	for _, part := range []struct {
		instances []instance
		into      map[string]store
	}{{wanted.Services.CAS, cached.cas}, {wanted.Services.ByteStream, cached.streams}, {wanted.Services.AC, cached.ac}} {
		for _, each := range part.instances {
			found, err := n.stores.get(each.CAS + each.AC)
			if err != nil {
				return nil, err
			}
			part.into[each.Name] = found
		}
	}
	for _, each := range wanted.Services.AC {
		cached.readOnly[each.Name] = each.ReadOnly
	}
	for _, each := range wanted.Services.Capabilities {
		cached.executes[each.Name] = each.Execution != nil
	}
	if len(wanted.Services.CAS) > 0 {
		repb.RegisterContentAddressableStorageServer(services, cached)
	}
	if len(wanted.Services.ByteStream) > 0 {
		bspb.RegisterByteStreamServer(services, cached)
	}
	if len(wanted.Services.AC) > 0 {
		repb.RegisterActionCacheServer(services, cached)
	}
	if len(wanted.Services.Capabilities) > 0 {
		repb.RegisterCapabilitiesServer(services, cached)
	}
	for _, each := range wanted.Services.Execution {
		cas, err := n.stores.get(each.CAS)
		if err != nil {
			return nil, err
		}
		executor := n.schedulers[each.Scheduler]
		if executor == nil || len(wanted.Services.Execution) > 1 {
			return nil, fmt.Errorf("one instance with a scheduler of the list can execute here, not %v", wanted.Services.Execution)
		}
		executor.cas[each.Name] = cas
		repb.RegisterExecutionServer(services, executor)
	}
	if api := wanted.Services.WorkerAPI; api != nil {
		if n.schedulers[api.Scheduler] == nil {
			return nil, fmt.Errorf("there is no scheduler %q", api.Scheduler)
		}
		services.RegisterService(&workersService, n.schedulers[api.Scheduler])
	}
	routes := http.NewServeMux()
	if wanted.Services.Health != nil {
		routes.HandleFunc("GET /status", n.status)
		routes.HandleFunc("GET /standin/state", n.state)
	}
	return http.HandlerFunc(func(answer http.ResponseWriter, asked *http.Request) {
		if strings.HasPrefix(asked.Header.Get("Content-Type"), "application/grpc") {
			services.ServeHTTP(answer, asked)
		} else {
			routes.ServeHTTP(answer, asked)
		}
	}), nil
}

// status fails while Redis can't be reached, if it is needed.
func (n *node) status(answer http.ResponseWriter, _ *http.Request) {
	answer.Header().Set("Content-Type", "application/json")
	for _, mirror := range n.mirrors {
		if !mirror.reached.Load() {
			answer.WriteHeader(http.StatusServiceUnavailable)
		}
	}
	fmt.Fprintln(answer, "[]")
}

func (n *node) state(answer http.ResponseWriter, asked *http.Request) {
	for _, each := range n.schedulers {
		answer.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(answer).Encode(each.state())
		return
	}
	http.NotFound(answer, asked)
}

func serve(wanted serverConfig, handler http.Handler, failed chan<- error) {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	listener := http.Server{
		Addr: wanted.Listener.HTTP.SocketAddress, Handler: handler, Protocols: &protocols,
		HTTP2: &http.HTTP2Config{MaxConcurrentStreams: 100_000}, // each action that is waited for is one
	}
	log.Printf("stand-in: %s listens on %s", wanted.Name, listener.Addr)
	if tls := wanted.Listener.HTTP.TLS; tls != nil {
		failed <- listener.ListenAndServeTLS(tls.CertFile, tls.KeyFile)
		return
	}
	failed <- listener.ListenAndServe()
}

func start(settings config, failed chan<- error) error {
	made := &node{stores: stores{}, schedulers: map[string]*scheduler{}}
	for _, spec := range settings.Stores {
		if err := made.stores.add(spec); err != nil {
			return err
		}
	}
	for _, each := range settings.Schedulers {
		if each.Simple == nil {
			return fmt.Errorf("scheduler %s is not of kind simple, the only one here", each.Name)
		}
		started := newScheduler(*each.Simple)
		made.schedulers[each.Name] = started
		mirror, err := backend(*each.Simple, started, made.stores)
		if err != nil {
			return err
		}
		if mirror != nil {
			made.mirrors = append(made.mirrors, mirror)
		} else if err := export(started); err != nil { // the real one counts only what is in memory
			return err
		}
	}
	for _, each := range settings.Workers {
		if each.Local == nil {
			return fmt.Errorf("a worker is not local")
		}
		worker, err := newWorker(*each.Local, made.stores)
		if err != nil {
			return err
		}
		go func() { failed <- worker.serve() }()
	}
	for _, wanted := range settings.Servers {
		handler, err := made.handler(wanted)
		if err != nil {
			return fmt.Errorf("server %s: %w", wanted.Name, err)
		}
		go serve(wanted, handler, failed)
	}
	return nil
}

func run() error {
	if len(os.Args) != 2 {
		return fmt.Errorf("usage: %s CONFIGURATION", os.Args[0])
	}
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM, syscall.SIGINT)
	settings, err := read(os.Args[1], os.Getenv("NATIVELINK_SCHEMA"))
	if err != nil {
		return err
	}
	failed := make(chan error)
	if err := start(settings, failed); err != nil {
		return fmt.Errorf("%s: %w", os.Args[1], err)
	}
	select {
	case err := <-failed:
		return err
	case <-end:
		log.Print("stand-in: ends in one second, whatever runs")
		time.Sleep(time.Second)
		return nil
	}
}

func main() {
	log.Print("stand-in for NativeLink")
	if err := run(); err != nil {
		log.Fatal(err)
	}
}
