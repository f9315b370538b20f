package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"testbed/standin/reapi"
)

type digest = *repb.Digest

// store keeps whole blobs. They are blobs of the CAS by their digest, or encoded ActionResults by the digest of their
// action.
type store interface {
	// Get fails with code NotFound for a blob that is not there.
	Get(ctx context.Context, key digest) ([]byte, error)
	Put(ctx context.Context, key digest, content []byte) error
}

func blob(of digest) string { return fmt.Sprintf("%s-%d", of.Hash, of.SizeBytes) }

func notFound(of digest) error { return status.Errorf(codes.NotFound, "%s is not here", blob(of)) }

// fetch returns a blob of the CAS. Every CAS has the empty blob.
func fetch(ctx context.Context, from store, of digest) ([]byte, error) {
	if of.GetSizeBytes() == 0 {
		return nil, nil
	}
	return from.Get(ctx, of)
}

// fetchMessage decodes a blob of the CAS into a message.
func fetchMessage(ctx context.Context, from store, of digest, into proto.Message) error {
	content, err := fetch(ctx, from, of)
	if err != nil {
		return err
	}
	return proto.Unmarshal(content, into)
}

// missing returns those of the digests whose blobs are not there. It reads all the others.
func missing(ctx context.Context, from store, digests []digest) (found []digest, _ error) {
	for _, wanted := range digests {
		if _, err := fetch(ctx, from, wanted); status.Code(err) == codes.NotFound {
			found = append(found, wanted)
		} else if err != nil {
			return nil, err
		}
	}
	return found, nil
}

// memory keeps blobs in memory.
type memory struct{ blobs sync.Map }

func (m *memory) Get(_ context.Context, key digest) ([]byte, error) {
	if content, there := m.blobs.Load(blob(key)); there {
		return content.([]byte), nil
	}
	return nil, notFound(key)
}

func (m *memory) Put(_ context.Context, key digest, content []byte) error {
	m.blobs.Store(blob(key), content)
	return nil
}

// filesystem keeps each blob in a file. Unlike the original, it evicts nothing.
type filesystem struct{ content, temp string }

func (f filesystem) Get(_ context.Context, key digest) ([]byte, error) {
	content, err := os.ReadFile(filepath.Join(f.content, blob(key)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, notFound(key)
	}
	return content, err
}

func (f filesystem) Put(_ context.Context, key digest, content []byte) error {
	draft, err := os.CreateTemp(f.temp, blob(key))
	if err != nil {
		return err
	}
	_, err = draft.Write(content)
	if err = errors.Join(err, draft.Close()); err == nil {
		err = os.Rename(draft.Name(), filepath.Join(f.content, blob(key)))
	}
	return err
}

// results is the action cache of another process.
type results struct {
	client   repb.ActionCacheClient
	instance string
}

func (r results) Get(ctx context.Context, key digest) ([]byte, error) {
	found, err := r.client.GetActionResult(ctx, &repb.GetActionResultRequest{InstanceName: r.instance, ActionDigest: key})
	if err != nil {
		return nil, err
	}
	return proto.Marshal(found)
}

func (r results) Put(ctx context.Context, key digest, content []byte) error {
	result := &repb.ActionResult{}
	if err := proto.Unmarshal(content, result); err != nil {
		return err
	}
	_, err := r.client.UpdateActionResult(ctx, &repb.UpdateActionResultRequest{
		InstanceName: r.instance, ActionDigest: key, ActionResult: result})
	return err
}

// shard sends each key to one of several stores.
type shard []store

func (s shard) of(key digest) store {
	number, _ := strconv.ParseUint(key.Hash[:min(8, len(key.Hash))], 16, 32)
	return s[number%uint64(len(s))]
}

func (s shard) Get(ctx context.Context, key digest) ([]byte, error) { return s.of(key).Get(ctx, key) }

func (s shard) Put(ctx context.Context, key digest, content []byte) error {
	return s.of(key).Put(ctx, key, content)
}

// fastSlow has every blob in slow, and those that were used in fast as well.
type fastSlow struct{ fast, slow store }

func (f fastSlow) Get(ctx context.Context, key digest) ([]byte, error) {
	read := func(tier, result string, content []byte) {
		tierOperations.Add(ctx, 1, with("store.tier", tier, "store.result", result))
		if result == "hit" {
			tierIO.Add(ctx, int64(len(content)), with("store.tier", tier, "store.direction", "read"))
		}
	}
	if content, err := f.fast.Get(ctx, key); err == nil {
		read("fast", "hit", content)
		return content, nil
	}
	read("fast", "miss", nil)
	content, err := f.slow.Get(ctx, key)
	if err == nil {
		read("slow", "hit", content)
		err = f.fast.Put(ctx, key, content)
	}
	return content, err
}

func (f fastSlow) Put(ctx context.Context, key digest, content []byte) error {
	return errors.Join(f.fast.Put(ctx, key, content), f.slow.Put(ctx, key, content))
}

// complete has only those results whose blobs are all in cas.
type complete struct {
	store
	cas store
}

func (c complete) Get(ctx context.Context, key digest) ([]byte, error) {
	content, err := c.store.Get(ctx, key)
	result := &repb.ActionResult{}
	if err = errors.Join(err, proto.Unmarshal(content, result)); err != nil {
		return nil, err
	}
	named := []digest{result.StdoutDigest, result.StderrDigest}
	for _, file := range result.OutputFiles {
		named = append(named, file.Digest)
	}
	lost, err := missing(ctx, c.cas, named)
	if err == nil && len(lost) > 0 {
		err = notFound(key)
	}
	return content, err
}

// verified takes only content that matches its digest. Other stores take any bytes under any digest.
type verified struct {
	store
	size, hash bool
}

func (v verified) Put(ctx context.Context, key digest, content []byte) error {
	found := reapi.Digest(content)
	if v.size && found.SizeBytes != key.SizeBytes || v.hash && found.Hash != key.Hash {
		return status.Errorf(codes.InvalidArgument, "the content is that of %s, and not of %s", blob(found), blob(key))
	}
	return v.store.Put(ctx, key, content)
}

// counted records what happens to its store, as operations on a cache of some type.
type counted struct {
	store
	cacheType string
}

func (c counted) record(ctx context.Context, operation, success string, err error) {
	result := success
	if status.Code(err) == codes.NotFound {
		result = "miss"
	} else if err != nil {
		result = "error"
	}
	cacheOperations.Add(ctx, 1, with(
		"cache.type", c.cacheType, "cache.operation.name", operation, "cache.operation.result", result))
}

func (c counted) Get(ctx context.Context, key digest) ([]byte, error) {
	content, err := c.store.Get(ctx, key)
	c.record(ctx, "read", "hit", err)
	return content, err
}

func (c counted) Put(ctx context.Context, key digest, content []byte) error {
	err := c.store.Put(ctx, key, content)
	c.record(ctx, "write", "success", err)
	return err
}

// stores has the stores of the configuration's list by name. It opens each of them when something first names it, and
// keeps the first failure.
type stores struct {
	specs  map[string]storeSpec
	opened map[string]store
	failed error
}

func (s *stores) fail(err error) { s.failed = cmp.Or(s.failed, err) }

func listed(specs []storeSpec) *stores {
	made := &stores{specs: map[string]storeSpec{}, opened: map[string]store{}}
	for _, spec := range specs {
		var name string
		if err := json.Unmarshal(spec["name"], &name); err != nil {
			made.fail(fmt.Errorf("a store has no name: %w", err))
		}
		delete(spec, "name")
		made.specs[name] = spec
	}
	for name := range made.specs {
		made.get("stores", name)
	}
	return made
}

// get returns the store that a field of the configuration names.
func (s *stores) get(field, name string) store {
	if found := s.opened[name]; found != nil {
		return found
	}
	spec, there := s.specs[name]
	if !there {
		s.fail(fmt.Errorf("%s: there is no store %q", field, name))
		return nil
	}
	s.opened[name] = s.open(spec)
	return s.opened[name]
}

func (s *stores) open(spec storeSpec) store {
	for kind, settings := range spec {
		var wanted struct {
			Name       string
			Fast, Slow storeSpec
			Backend    storeSpec
			CAS        storeSpec `json:"cas_store"`
			Stores     []struct{ Store storeSpec }
			Instance   string `json:"instance_name"`
			Type       string `json:"store_type"`
			Endpoints  []struct {
				Address expanded
				TLS     *clientTLS `json:"tls_config"`
			}
			Content expanded `json:"content_path"`
			Temp    expanded `json:"temp_path"`
			Cache   string   `json:"cache_type"`
			Size    bool     `json:"verify_size"`
			Hash    bool     `json:"verify_hash"`
			redisConfig
		}
		s.fail(json.Unmarshal(settings, &wanted))
		switch kind {
		case "memory", "experimental_cloud_object_store": // the bucket of this process alone
			return &memory{}
		case "filesystem":
			made := filesystem{string(wanted.Content), string(wanted.Temp)}
			s.fail(errors.Join(os.MkdirAll(made.content, 0o755), os.MkdirAll(made.temp, 0o755)))
			return made
		case "ref_store":
			return s.get(kind, wanted.Name)
		case "existence_cache":
			return s.open(wanted.Backend)
		case "fast_slow":
			return fastSlow{s.open(wanted.Fast), s.open(wanted.Slow)}
		case "completeness_checking":
			return complete{s.open(wanted.Backend), s.open(wanted.CAS)}
		case "verify":
			return verified{s.open(wanted.Backend), wanted.Size, wanted.Hash}
		case "cache_metrics":
			return counted{s.open(wanted.Backend), wanted.Cache}
		case "shard":
			made := shard{}
			for _, part := range wanted.Stores {
				made = append(made, s.open(part.Store))
			}
			return made
		case "redis_store":
			made, err := connect(wanted.redisConfig)
			s.fail(err)
			return made
		case "grpc":
			if len(wanted.Endpoints) != 1 {
				s.fail(fmt.Errorf("the stand-in takes one endpoint in a grpc store, not %d", len(wanted.Endpoints)))
				return nil
			}
			connection, err := dial(string(wanted.Endpoints[0].Address), wanted.Endpoints[0].TLS)
			s.fail(err)
			if wanted.Type == "ac" {
				return results{repb.NewActionCacheClient(connection), wanted.Instance}
			}
			return reapi.NewCache(connection, wanted.Instance)
		}
		s.fail(fmt.Errorf("the stand-in has no stores of kind %s", kind))
		return nil
	}
	s.fail(errors.New("a store has no kind"))
	return nil
}

// dial prepares a connection to an endpoint. It reads the files of its certificates now, and never again.
func dial(address string, wanted *clientTLS) (*grpc.ClientConn, error) {
	secure := strings.HasPrefix(address, "grpcs://") || strings.HasPrefix(address, "https://")
	if secure != (wanted != nil) {
		return nil, fmt.Errorf("%s has to be grpcs:// with tls_config, and grpc:// without", address)
	}
	if !secure {
		wanted = &clientTLS{}
	}
	settings, err := reapi.TLS(string(wanted.CA), string(wanted.Certificate), string(wanted.Key))
	if err != nil {
		return nil, err
	}
	return reapi.Dial(address, "", settings)
}
