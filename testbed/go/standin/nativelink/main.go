// Command nativelink is a STAND-IN for TraceMachina's NativeLink, for machines that cannot pull its image.
//
// The stand-in reads the configuration file that is its only argument, and refuses what the schema refuses. It then
// is the CAS, the scheduler or the worker that the file describes, for any client of the Remote Execution API. The
// README in the folder above lists what the tests need of it. The stand-in is small, not fast. It transfers whole blobs
// through memory and evicts nothing, and its workers and schedulers understand only one another.
package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
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
	stores     stores
	schedulers map[string]*scheduler
}

// scheduler returns the scheduler that a service names.
func (n *node) scheduler(name, service string) (*scheduler, error) {
	if found := n.schedulers[name]; found != nil {
		return found, nil
	}
	return nil, fmt.Errorf("%s: there is no scheduler %q", service, name)
}

func (n *node) handler(wanted serverConfig) (http.Handler, error) {
	services := grpc.NewServer(
		grpc.MaxRecvMsgSize(reapi.MaxMessage), grpc.MaxSendMsgSize(reapi.MaxMessage),
		grpc.UnaryInterceptor(serveCall), grpc.StreamInterceptor(serveStream),
		// Without a handler, calls of other services would not be recorded.
		grpc.UnknownServiceHandler(func(any, grpc.ServerStream) error { return status.Error(codes.Unimplemented, "") }),
	)
	cached := &cache{
		cas: map[string]store{}, streams: map[string]store{}, ac: map[string]store{},
		readOnly: map[string]bool{}, executes: map[string]bool{},
	}
	for _, part := range []struct {
		service, field string
		instances      []instance
		into           map[string]store
	}{
		{"AC", "ac_store", wanted.Services.AC, cached.ac},
		{"CAS", "cas_store", wanted.Services.CAS, cached.cas},
		{"ByteStream", "cas_store", wanted.Services.ByteStream, cached.streams},
	} {
		for _, each := range part.instances {
			found, err := n.stores.get(part.field, each.CAS+each.AC)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", part.service, err)
			}
			part.into[each.Name] = found
		}
	}
	for _, each := range wanted.Services.AC {
		cached.readOnly[each.Name] = each.ReadOnly
	}
	for _, each := range wanted.Services.Capabilities {
		cached.executes[each.Name] = each.Execution != nil
		if each.Execution != nil {
			if _, err := n.scheduler(each.Execution.Scheduler, "capabilities"); err != nil {
				return nil, err
			}
		}
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
		cas, err := n.stores.get("cas_store", each.CAS)
		if err != nil {
			return nil, fmt.Errorf("Execution: %w", err)
		}
		executor, err := n.scheduler(each.Scheduler, "execution")
		if err != nil {
			return nil, err
		}
		if len(wanted.Services.Execution) > 1 {
			return nil, fmt.Errorf("the stand-in executes for one instance of a server, not for %d", len(wanted.Services.Execution))
		}
		executor.cas[each.Name] = cas
		repb.RegisterExecutionServer(services, executor)
	}
	if api := wanted.Services.WorkerAPI; api != nil {
		queue, err := n.scheduler(api.Scheduler, "worker_api")
		if err != nil {
			return nil, err
		}
		services.RegisterService(&workersService, queue)
	}
	routes := http.NewServeMux()
	if wanted.Services.Health != nil {
		routes.HandleFunc("GET /status", n.status)
	}
	return http.HandlerFunc(func(answer http.ResponseWriter, asked *http.Request) {
		if strings.HasPrefix(asked.Header.Get("Content-Type"), "application/grpc") {
			services.ServeHTTP(answer, asked)
		} else {
			routes.ServeHTTP(answer, asked)
		}
	}), nil
}

// status answers GET /status. The answer is a failure while a Redis of the configuration's list does not answer.
func (n *node) status(answer http.ResponseWriter, asked *http.Request) {
	answer.Header().Set("Content-Type", "application/json")
	for name, each := range n.stores.by {
		kind, result := "", "ok"
		switch checked := each.(type) {
		case *memory:
			kind = "MemoryStore"
		case *filesystem:
			kind = "FilesystemStore"
		case *backend:
			kind = "RedisStore"
			if checked.ping() != nil {
				result = "failed"
			}
		default:
			continue // the original checks no stores of other kinds, and none inside them
		}
		healthChecks.Add(asked.Context(), 1, with("health.namespace", "/nativelink/stores/"+name+"/"+kind, "health.status", result))
		if result != "ok" {
			answer.WriteHeader(http.StatusServiceUnavailable)
		}
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
	if settings.TLS != nil {
		if settings.TLS.ClientCRL != "" {
			return errors.New("the stand-in has no client_crl_file")
		}
		certificate, err := tls.LoadX509KeyPair(string(settings.TLS.CertFile), string(settings.TLS.KeyFile))
		if err != nil {
			return err
		}
		server.TLSConfig = &tls.Config{Certificates: []tls.Certificate{certificate}}
		if authority := string(settings.TLS.ClientCA); authority != "" {
			if server.TLSConfig.ClientCAs, err = reapi.Authorities(authority); err != nil {
				return err
			}
			server.TLSConfig.ClientAuth = tls.RequireAndVerifyClientCert
		}
	}
	listener, err := net.Listen("tcp", string(settings.SocketAddress))
	if err != nil {
		return err
	}
	slog.Info("Ready, listening on " + string(settings.SocketAddress))
	go func() {
		if settings.TLS != nil {
			failed <- server.ServeTLS(listener, "", "")
		} else {
			failed <- server.Serve(listener)
		}
	}()
	return nil
}

// makeScheduler makes a scheduler of the configuration's list, or the scheduler inside a cache_lookup.
func (n *node) makeScheduler(spec schedulerSpec) (*scheduler, error) {
	switch {
	case spec.CacheLookup != nil:
		results, err := n.stores.get("ac_store", spec.CacheLookup.AC)
		if err != nil {
			return nil, err
		}
		inner, err := n.makeScheduler(spec.CacheLookup.Scheduler)
		if err == nil {
			inner.results = results
		}
		return inner, err
	case spec.Simple == nil:
		return nil, errors.New("the stand-in has schedulers of the kinds simple and cache_lookup only")
	}
	made := newScheduler(*spec.Simple)
	chosen := spec.Simple.ExperimentalBackend.Redis
	if chosen == nil {
		return made, made.countActions() // the original counts only the actions in memory
	}
	found, err := n.stores.get("redis_store", chosen.Store)
	if err != nil {
		return nil, err
	}
	queue, is := found.(*backend)
	if !is || queue.channel == "" {
		return nil, fmt.Errorf("%s is no redis_store with a channel", chosen.Store)
	}
	made.redis = queue
	return made, queue.begin()
}

func start(settings config, failed chan<- error) error {
	made := &node{stores: newStores(), schedulers: map[string]*scheduler{}}
	for _, spec := range settings.Stores {
		if err := made.stores.add(spec); err != nil {
			return err
		}
	}
	if err := made.stores.check(); err != nil {
		return err
	}
	for _, each := range settings.Schedulers {
		started, err := made.makeScheduler(each.schedulerSpec)
		if err != nil {
			return fmt.Errorf("scheduler %s: %w", each.Name, err)
		}
		made.schedulers[each.Name] = started
	}
	for _, wanted := range settings.Servers {
		if wanted.Services == nil {
			return errors.New("'services' must be configured")
		}
		handler, err := made.handler(wanted)
		if err == nil {
			err = serve(wanted, handler, failed)
		}
		if err != nil {
			return fmt.Errorf("server %s: %w", wanted.Name, err)
		}
	}
	for _, each := range made.schedulers {
		each.start()
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
	file, err := schemaFile()
	if err != nil {
		return err
	}
	by, err := readSchema(file)
	if err != nil {
		return err
	}
	settings, err := read(os.Args[1], by)
	if err != nil {
		return err
	}
	failed := make(chan error)
	if err := errors.Join(export(), start(settings, failed)); err != nil {
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
