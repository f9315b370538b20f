// Command nativelink is a STAND-IN for TraceMachina's NativeLink, for machines that cannot pull its image.
//
// The stand-in reads the configuration file that is its only argument, and refuses what the original refuses. It then
// is the CAS, the scheduler or the worker that the file describes, for any client of the Remote Execution API. The
// README in the folder above lists what the stand-in does like the original, and what it does differently. The stand-in
// is small, not fast. It transfers whole blobs through memory and evicts nothing, and its workers and schedulers
// understand only one another.
package main

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
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
	return nil, fmt.Errorf("Scheduler needs config for '%s' because it exists in %s", name, service) //nolint:staticcheck // the original's words
}

func (n *node) handler(wanted serverConfig) (http.Handler, error) {
	services := grpc.NewServer(
		grpc.MaxRecvMsgSize(reapi.MaxMessage), grpc.MaxSendMsgSize(reapi.MaxMessage),
		grpc.UnaryInterceptor(serveCall), grpc.StreamInterceptor(serveStream),
		// Without a handler, calls of other services would not be recorded.
		grpc.UnknownServiceHandler(func(any, grpc.ServerStream) error { return status.Error(codes.Unimplemented, "") }),
	)
	cached := &cache{
		old: n.stores.old, cas: map[string]store{}, streams: map[string]store{}, ac: map[string]store{},
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
				return nil, fmt.Errorf("Could not create %s service: %w", part.service, err) //nolint:staticcheck // the original's words
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
			return nil, fmt.Errorf("Could not create Execution service: %w", err) //nolint:staticcheck // the original's words
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

func (n *node) state(answer http.ResponseWriter, asked *http.Request) {
	for _, each := range n.schedulers {
		answer.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(answer).Encode(each.state())
		return
	}
	http.NotFound(answer, asked)
}

// serve starts a server, which listens when serve returns. Later failures go to the channel failed.
func serve(wanted serverConfig, handler http.Handler, failed chan<- error) error {
	settings := wanted.Listener.HTTP
	address, err := netip.ParseAddrPort(string(settings.SocketAddress))
	if err != nil {
		return fmt.Errorf("Invalid address '%s': invalid socket address syntax", settings.SocketAddress) //nolint:staticcheck // the original's words
	}
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
			return fmt.Errorf("Could not open cert file %s: %w", settings.TLS.CertFile, err) //nolint:staticcheck // the original's words
		}
		server.TLSConfig = &tls.Config{Certificates: []tls.Certificate{certificate}}
		if authority := string(settings.TLS.ClientCA); authority != "" {
			if server.TLSConfig.ClientCAs, err = reapi.Authorities(authority); err != nil {
				return fmt.Errorf("Could not open cert file %s: %w", authority, err) //nolint:staticcheck // the same
			}
			server.TLSConfig.ClientAuth = tls.RequireAndVerifyClientCert
		}
	}
	listener, err := net.Listen("tcp", address.String())
	if errors.Is(err, syscall.EADDRINUSE) {
		err = fmt.Errorf("Address '%s' is already in use by another process.", address) //nolint:staticcheck // the original's words
	}
	if err != nil {
		return err
	}
	if os.Getenv("NATIVELINK_STANDIN_NAGLE") != "" {
		if listener, err = leaveNagle(listener.(*net.TCPListener)); err != nil {
			return err
		}
	}
	slog.Info("Ready, listening on " + address.String())
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
	made := newScheduler(*spec.Simple, n.stores.old)
	chosen := spec.Simple.ExperimentalBackend.Redis
	if chosen == nil {
		return made, made.countActions() // the original counts only the actions in memory
	}
	found, err := n.stores.get("redis_store", chosen.Store)
	if err != nil {
		return nil, err
	}
	queue, is := found.(*backend)
	switch {
	case !is:
		return nil, errors.New("Could not downcast to redis store in RedisAwaitedActionDb::new") //nolint:staticcheck // the original's words
	case queue.channel == "":
		return nil, errors.New("RedisStore must have a pubsub for Redis Scheduler if using subscriptions") //nolint:staticcheck // the same
	}
	made.redis = queue
	return made, queue.begin()
}

func start(settings config, old bool, failed chan<- error) error {
	made := &node{stores: newStores(old), schedulers: map[string]*scheduler{}}
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
			return fmt.Errorf("Failed to create scheduler '%s': %w", each.Name, err) //nolint:staticcheck // the original's words
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
	names := map[string]bool{}
	for _, each := range settings.Workers {
		if each.Local == nil {
			return errors.New("the stand-in has local workers only")
		}
		worker, err := newWorker(*each.Local, made.stores)
		if err == nil && names[worker.name] {
			err = fmt.Errorf("Duplicate worker name '%s' found in config", worker.name) //nolint:staticcheck // the original's words
		}
		if err != nil {
			return err
		}
		names[worker.name] = true
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
	if err := errors.Join(export(by.old), start(settings, by.old, failed)); err != nil {
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
	slog.SetDefault(slog.New(newLogs(os.Getenv("NL_LOG"), os.Getenv("RUST_LOG"))))
	slog.Info("This is the stand-in for NativeLink.")
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
}
