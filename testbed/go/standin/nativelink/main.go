// Command nativelink is a STAND-IN for TraceMachina's NativeLink, for machines that cannot pull its image. The README in
// the folder above says what it does. It is small, not fast.
package main

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	bspb "google.golang.org/genproto/googleapis/bytestream"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"testbed/standin/reapi"
)

// node has the stores and the schedulers that a configuration describes.
type node struct {
	*stores
	schedulers map[string]*scheduler
}

// scheduler returns the scheduler that a service names.
func (n *node) scheduler(service, name string) *scheduler {
	if n.schedulers[name] == nil {
		n.fail(fmt.Errorf("%s: there is no scheduler %q", service, name))
		return &scheduler{}
	}
	return n.schedulers[name]
}

func (n *node) handler(wanted services) http.Handler {
	cached := &cache{}
	for _, each := range slices.Concat(wanted.CAS, wanted.ByteStream, wanted.AC, wanted.Capabilities, wanted.Execution) {
		if cached.instance = cmp.Or(cached.instance, each.Name); each.Name != cached.instance {
			n.fail(errors.New("the stand-in serves one instance at a listener"))
		}
	}
	server := grpc.NewServer(
		grpc.MaxRecvMsgSize(reapi.MaxMessage), grpc.MaxSendMsgSize(reapi.MaxMessage), grpc.StatsHandler(calls{}),
		grpc.UnaryInterceptor(cached.check),
		// Without a handler, calls of other services would not be recorded.
		grpc.UnknownServiceHandler(func(any, grpc.ServerStream) error { return status.Error(codes.Unimplemented, "") }),
	)
	for _, each := range append(wanted.CAS, wanted.ByteStream...) {
		cached.cas = n.get("cas_store", each.CAS)
	}
	for _, each := range wanted.AC {
		cached.ac, cached.readOnly = n.get("ac_store", each.AC), each.ReadOnly
	}
	for _, each := range wanted.Capabilities {
		cached.executes = each.Execution != nil
		if each.Compression {
			cached.compressors = []repb.Compressor_Value{repb.Compressor_ZSTD}
		}
	}
	if cached.cas != nil {
		repb.RegisterContentAddressableStorageServer(server, cached)
		bspb.RegisterByteStreamServer(server, cached)
	}
	if cached.ac != nil {
		repb.RegisterActionCacheServer(server, cached)
	}
	if wanted.Capabilities != nil {
		repb.RegisterCapabilitiesServer(server, cached)
	}
	for _, each := range wanted.Execution {
		executor := n.scheduler("execution", each.Scheduler)
		executor.instance, executor.cas = each.Name, n.get("cas_store", each.CAS)
		repb.RegisterExecutionServer(server, executor)
	}
	if wanted.WorkerAPI != nil {
		server.RegisterService(&workersService, n.scheduler("worker_api", wanted.WorkerAPI.Scheduler))
	}
	routes := http.NewServeMux()
	if wanted.Health != nil {
		routes.HandleFunc("GET /status", n.status)
	}
	return http.HandlerFunc(func(answer http.ResponseWriter, asked *http.Request) {
		if strings.HasPrefix(asked.Header.Get("Content-Type"), "application/grpc") {
			server.ServeHTTP(answer, asked)
		} else {
			routes.ServeHTTP(answer, asked)
		}
	})
}

// status answers GET /status. The answer is a failure while a Redis of the configuration's list does not answer.
func (n *node) status(answer http.ResponseWriter, asked *http.Request) {
	answer.Header().Set("Content-Type", "application/json")
	for name, each := range n.opened {
		result := "ok"
		if queue, is := each.(*backend); is && queue.ping() != nil {
			result = "failed"
			answer.WriteHeader(http.StatusServiceUnavailable)
		}
		healthChecks.Add(asked.Context(), 1, with("health.namespace", "/nativelink/stores/"+name, "health.status", result))
	}
	fmt.Fprintln(answer, "[]")
}

// serve starts a server, which listens when serve returns. Later failures go to the channel failed.
func serve(wanted serverConfig, handler http.Handler, failed chan<- error) error {
	settings := wanted.Listener.HTTP
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	server := http.Server{
		Handler: handler, Protocols: &protocols,
		HTTP2: &http.HTTP2Config{MaxConcurrentStreams: 100_000}, // each action that a client waits for is a stream
	}
	listener, err := net.Listen("tcp", string(settings.SocketAddress))
	if err != nil {
		return err
	}
	run := func() error { return server.Serve(listener) }
	if files := settings.TLS; files != nil {
		if files.ClientCRL != "" {
			return errors.New("the stand-in has no client_crl_file")
		}
		server.TLSConfig, err = reapi.TLS(string(files.ClientCA), string(files.CertFile), string(files.KeyFile))
		if err != nil {
			return err
		}
		if server.TLSConfig.ClientCAs = server.TLSConfig.RootCAs; files.ClientCA != "" {
			server.TLSConfig.ClientAuth = tls.RequireAndVerifyClientCert
		}
		run = func() error { return server.ServeTLS(listener, "", "") }
	}
	slog.Info("Ready, listening on " + string(settings.SocketAddress))
	go func() { failed <- run() }()
	return nil
}

// makeScheduler makes a scheduler of the configuration's list, or the scheduler inside a cache_lookup.
func (n *node) makeScheduler(spec schedulerSpec) *scheduler {
	if around := spec.CacheLookup; around != nil {
		made := n.makeScheduler(around.Scheduler)
		made.results = n.get("ac_store", around.AC)
		return made
	}
	if spec.Simple == nil {
		n.fail(errors.New("the stand-in has schedulers of the kinds simple and cache_lookup only"))
		return &scheduler{}
	}
	made := newScheduler(*spec.Simple)
	chosen := spec.Simple.ExperimentalBackend.Redis
	if chosen == nil {
		n.fail(made.countActions()) // the original counts only the actions in memory
	} else if queue, is := n.get("redis_store", chosen.Store).(*backend); is && queue.channel != "" {
		made.redis = queue
		n.fail(queue.begin())
	} else {
		n.fail(fmt.Errorf("%s is not a redis_store with a channel", chosen.Store))
	}
	return made
}

func start(settings config, failed chan<- error) error {
	made := &node{listed(settings.Stores), map[string]*scheduler{}}
	if made.failed != nil {
		return made.failed
	}
	for _, each := range settings.Schedulers {
		made.schedulers[each.Name] = made.makeScheduler(each.schedulerSpec)
	}
	for _, wanted := range settings.Servers {
		handler := made.handler(wanted.Services)
		if made.failed == nil {
			made.fail(serve(wanted, handler, failed))
		}
	}
	if made.failed != nil {
		return made.failed
	}
	for _, each := range made.schedulers {
		go each.serve()
	}
	for _, each := range settings.Workers {
		if each.Local == nil {
			return errors.New("the stand-in has local workers only")
		}
		worker, err := newWorker(*each.Local, made.stores)
		if err != nil {
			return err
		}
		go worker.serve()
	}
	return nil
}

func run() error {
	if len(os.Args) != 2 {
		return fmt.Errorf("usage: %s CONFIGURATION", os.Args[0])
	}
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM, syscall.SIGINT)
	failed := make(chan error)
	settings, err := read(os.Args[1])
	if err == nil {
		err = errors.Join(export(), start(settings, failed))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", os.Args[1], err)
	}
	select {
	case err := <-failed:
		return err
	case <-end:
		slog.Warn("Process terminated via SIGTERM")
		time.Sleep(time.Second) // even while actions run
		slog.Warn("Successfully shut down nativelink.")
		os.Exit(143)
	}
	return nil
}

func main() {
	slog.SetDefault(slog.New(slog.NewJSONHandler(os.Stdout, nil)))
	slog.Info("This is the stand-in for NativeLink.")
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
}
