package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"go.opentelemetry.io/otel/metric"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"testbed/standin/reapi"
)

type digest = *repb.Digest

// store keeps whole blobs. They are blobs of the CAS by their digest, or encoded ActionResults by the digest of their
// action.
type store interface {
	Missing(ctx context.Context, digests []digest) ([]digest, error)
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

// memory keeps blobs in memory.
type memory struct{ blobs sync.Map }

func (m *memory) Missing(_ context.Context, digests []digest) (missing []digest, _ error) {
	for _, wanted := range digests {
		if _, there := m.blobs.Load(blob(wanted)); !there {
			missing = append(missing, wanted)
		}
	}
	return missing, nil
}

func (m *memory) Get(_ context.Context, wanted digest) ([]byte, error) {
	content, there := m.blobs.Load(blob(wanted))
	if !there {
		return nil, notFound(wanted)
	}
	return content.([]byte), nil
}

func (m *memory) Put(_ context.Context, wanted digest, content []byte) error {
	m.blobs.Store(blob(wanted), content)
	return nil
}

// filesystem keeps each blob in a file. Unlike the original, it evicts nothing.
type filesystem struct{ Content, Temp string }

func (f *filesystem) path(of digest) string { return filepath.Join(f.Content, blob(of)) }

func (f *filesystem) Missing(_ context.Context, digests []digest) (missing []digest, _ error) {
	for _, wanted := range digests {
		if _, err := os.Stat(f.path(wanted)); err != nil {
			missing = append(missing, wanted)
		}
	}
	return missing, nil
}

func (f *filesystem) Get(_ context.Context, wanted digest) ([]byte, error) {
	content, err := os.ReadFile(f.path(wanted))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, notFound(wanted)
	}
	return content, err
}

func (f *filesystem) Put(_ context.Context, wanted digest, content []byte) error {
	draft, err := os.CreateTemp(f.Temp, blob(wanted))
	if err != nil {
		return err
	}
	_, err = draft.Write(content)
	if err = errors.Join(err, draft.Close()); err == nil {
		err = os.Rename(draft.Name(), f.path(wanted))
	}
	return err
}

// results is the action cache of another process.
type results struct{ reapi.Results }

func (r results) Missing(ctx context.Context, digests []digest) (missing []digest, _ error) {
	for _, wanted := range digests {
		if _, err := r.Results.Get(ctx, wanted); status.Code(err) == codes.NotFound {
			missing = append(missing, wanted)
		} else if err != nil {
			return nil, err
		}
	}
	return missing, nil
}

func (r results) Get(ctx context.Context, wanted digest) ([]byte, error) {
	found, err := r.Results.Get(ctx, wanted)
	if err != nil {
		return nil, err
	}
	return proto.Marshal(found)
}

func (r results) Put(ctx context.Context, wanted digest, content []byte) error {
	result := &repb.ActionResult{}
	if err := proto.Unmarshal(content, result); err != nil {
		return err
	}
	return r.Results.Put(ctx, wanted, result)
}

// shard sends each key to one of several stores.
type shard []store

func (s shard) of(wanted digest) int {
	number, _ := strconv.ParseUint(wanted.Hash[:min(8, len(wanted.Hash))], 16, 32)
	return int(number % uint64(len(s)))
}

func (s shard) Missing(ctx context.Context, digests []digest) (missing []digest, _ error) {
	shares := make([][]digest, len(s))
	for _, wanted := range digests {
		shares[s.of(wanted)] = append(shares[s.of(wanted)], wanted)
	}
	for index, share := range shares {
		if len(share) > 0 {
			found, err := s[index].Missing(ctx, share)
			if err != nil {
				return nil, err
			}
			missing = append(missing, found...)
		}
	}
	return missing, nil
}

func (s shard) Get(ctx context.Context, wanted digest) ([]byte, error) {
	return s[s.of(wanted)].Get(ctx, wanted)
}

func (s shard) Put(ctx context.Context, wanted digest, content []byte) error {
	return s[s.of(wanted)].Put(ctx, wanted, content)
}

// fastSlow has every blob in slow, and those that were used in fast as well.
type fastSlow struct{ fast, slow store }

func (f fastSlow) Missing(ctx context.Context, digests []digest) ([]digest, error) {
	return f.slow.Missing(ctx, digests)
}

func (f fastSlow) Get(ctx context.Context, wanted digest) ([]byte, error) {
	read := func(tier, result string, content []byte) {
		tierOperations.Add(ctx, 1, with("store.tier", tier, "store.result", result))
		if result == "hit" {
			tierIO.Add(ctx, int64(len(content)), with("store.tier", tier, "store.direction", "read"))
		}
	}
	if content, err := f.fast.Get(ctx, wanted); err == nil {
		read("fast", "hit", content)
		return content, nil
	}
	read("fast", "miss", nil)
	content, err := f.slow.Get(ctx, wanted)
	if err == nil {
		read("slow", "hit", content)
		err = f.fast.Put(ctx, wanted, content)
	}
	return content, err
}

func (f fastSlow) Put(ctx context.Context, wanted digest, content []byte) error {
	return errors.Join(f.fast.Put(ctx, wanted, content), f.slow.Put(ctx, wanted, content))
}

// complete has only those results whose blobs are all in cas.
type complete struct{ store, cas store }

func (c complete) Get(ctx context.Context, wanted digest) ([]byte, error) {
	content, err := c.store.Get(ctx, wanted)
	if err != nil {
		return nil, err
	}
	result := &repb.ActionResult{}
	if err := proto.Unmarshal(content, result); err != nil {
		return nil, err
	}
	named := []digest{}
	name := func(of digest) {
		if of.GetSizeBytes() > 0 {
			named = append(named, of)
		}
	}
	name(result.StdoutDigest)
	name(result.StderrDigest)
	for _, file := range result.OutputFiles {
		name(file.Digest)
	}
	for _, directory := range result.OutputDirectories {
		tree := &repb.Tree{}
		if err := fetchMessage(ctx, c.cas, directory.TreeDigest, tree); err != nil {
			return nil, err
		}
		for _, folder := range append(tree.Children, tree.Root) {
			for _, file := range folder.GetFiles() {
				name(file.Digest)
			}
		}
	}
	missing, err := c.cas.Missing(ctx, named)
	if err == nil && len(missing) > 0 {
		err = notFound(wanted)
	}
	return content, err
}

func (c complete) Missing(ctx context.Context, digests []digest) ([]digest, error) {
	return c.store.Missing(ctx, digests)
}

func (c complete) Put(ctx context.Context, wanted digest, content []byte) error {
	return c.store.Put(ctx, wanted, content)
}

// verified takes only content that matches its digest. Other stores take any bytes under any digest.
type verified struct {
	store
	size, hash bool
}

func (v verified) Put(ctx context.Context, wanted digest, content []byte) error {
	found := reapi.Digest(content)
	if v.size && found.SizeBytes != wanted.SizeBytes {
		return status.Errorf(codes.InvalidArgument,
			"Expected size to match. Got %d but digest says %d on update", found.SizeBytes, wanted.SizeBytes)
	}
	if v.hash && found.Hash != wanted.Hash {
		return status.Errorf(codes.InvalidArgument,
			"Hash verification using SHA256 failed: client declared SHA256:%s, but the server computed SHA256:%s", wanted.Hash, found.Hash)
	}
	return v.store.Put(ctx, wanted, content)
}

// counted records what happens to its store, as operations on a cache of some type.
type counted struct {
	store
	cacheType string
}

func (c counted) about(operation, result string) metric.MeasurementOption {
	return with("cache.type", c.cacheType, "cache.operation.name", operation, "cache.operation.result", result)
}

func (c counted) record(ctx context.Context, began time.Time, operation, result string) metric.MeasurementOption {
	about := c.about(operation, result)
	cacheOperations.Add(ctx, 1, about)
	lasted(ctx, began, about)
	return about
}

func lasted(ctx context.Context, began time.Time, about metric.MeasurementOption) {
	cacheDuration.Record(ctx, float64(time.Since(began))/float64(time.Millisecond), about)
}

// Missing counts each digest, but has one duration: that of a hit, if there is any.
func (c counted) Missing(ctx context.Context, digests []digest) ([]digest, error) {
	began := time.Now()
	missing, err := c.store.Missing(ctx, digests)
	if err != nil {
		cacheOperations.Add(ctx, int64(len(digests)), c.about("read", "error"))
		lasted(ctx, began, c.about("read", "error"))
		return nil, err
	}
	result := "miss"
	if len(missing) > 0 {
		cacheOperations.Add(ctx, int64(len(missing)), c.about("read", "miss"))
	}
	if hits := len(digests) - len(missing); hits > 0 {
		result = "hit"
		cacheOperations.Add(ctx, int64(hits), c.about("read", "hit"))
	}
	lasted(ctx, began, c.about("read", result))
	return missing, nil
}

func (c counted) Get(ctx context.Context, wanted digest) ([]byte, error) {
	began := time.Now()
	content, err := c.store.Get(ctx, wanted)
	switch {
	case err == nil:
		cacheIO.Add(ctx, int64(len(content)), c.record(ctx, began, "read", "hit"))
	case status.Code(err) == codes.NotFound:
		c.record(ctx, began, "read", "miss")
	default:
		c.record(ctx, began, "read", "error")
	}
	return content, err
}

func (c counted) Put(ctx context.Context, wanted digest, content []byte) error {
	began := time.Now()
	err := c.store.Put(ctx, wanted, content)
	if err != nil {
		c.record(ctx, began, "write", "error")
		return err
	}
	about := c.record(ctx, began, "write", "success")
	cacheIO.Add(ctx, int64(len(content)), about)
	cacheItemSize.Record(ctx, int64(len(content)), about)
	return nil
}

// reference is a store of the configuration's list, which may come later in it.
type reference struct {
	named stores
	name  string
}

func (r reference) store() (store, error) {
	if found, there := r.named.by[r.name]; there {
		return found, nil
	}
	return nil, fmt.Errorf("ref_store: there is no store %q", r.name)
}

func (r reference) Missing(ctx context.Context, digests []digest) ([]digest, error) {
	found, err := r.store()
	if err != nil {
		return nil, err
	}
	return found.Missing(ctx, digests)
}

func (r reference) Get(ctx context.Context, wanted digest) ([]byte, error) {
	found, err := r.store()
	if err != nil {
		return nil, err
	}
	return found.Get(ctx, wanted)
}

func (r reference) Put(ctx context.Context, wanted digest, content []byte) error {
	found, err := r.store()
	if err != nil {
		return err
	}
	return found.Put(ctx, wanted, content)
}

// stores has the stores of the configuration's list by name, and the references to them.
type stores struct {
	by         map[string]store
	references *[]reference
}

func newStores() stores { return stores{map[string]store{}, &[]reference{}} }

func (named stores) add(spec storeSpec) error {
	var name string
	if err := json.Unmarshal(spec["name"], &name); err != nil {
		return fmt.Errorf("a store has no name: %w", err)
	}
	made, err := named.open(spec)
	if err == nil && named.by[name] != nil {
		err = errors.New("the name is taken")
	}
	if err != nil {
		return fmt.Errorf("store %q: %w", name, err)
	}
	named.by[name] = made
	return nil
}

// check fails if a reference names a store that does not exist.
func (named stores) check() error {
	for _, each := range *named.references {
		if _, err := each.store(); err != nil {
			return err
		}
	}
	return nil
}

// get returns the store that a field of a service names.
func (named stores) get(field, name string) (store, error) {
	if found, there := named.by[name]; there {
		return found, nil
	}
	return nil, fmt.Errorf("%s: there is no store %q", field, name)
}

func (named stores) open(spec storeSpec) (store, error) {
	for kind, settings := range spec {
		if kind == "name" {
			continue
		}
		var wanted struct {
			Name       string
			Fast, Slow storeSpec
			Backend    storeSpec
			CAS        storeSpec `json:"cas_store"`
			Stores     []struct {
				Store  storeSpec
				Weight uint32
			}
			Instance  string `json:"instance_name"`
			Type      string `json:"store_type"`
			Endpoints []struct {
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
		if err := json.Unmarshal(settings, &wanted); err != nil {
			return nil, err
		}
		switch kind {
		case "memory":
			return &memory{}, nil
		case "filesystem":
			made := &filesystem{string(wanted.Content), string(wanted.Temp)}
			return made, errors.Join(os.MkdirAll(made.Content, 0o755), os.MkdirAll(made.Temp, 0o755))
		case "ref_store":
			made := reference{named, wanted.Name}
			*named.references = append(*named.references, made)
			return made, nil
		case "fast_slow":
			fast, err := named.open(wanted.Fast)
			slow, other := named.open(wanted.Slow)
			return fastSlow{fast, slow}, errors.Join(err, other)
		case "completeness_checking":
			backend, err := named.open(wanted.Backend)
			cas, other := named.open(wanted.CAS)
			return complete{backend, cas}, errors.Join(err, other)
		case "verify":
			backend, err := named.open(wanted.Backend)
			return verified{backend, wanted.Size, wanted.Hash}, err
		case "cache_metrics":
			backend, err := named.open(wanted.Backend)
			return counted{backend, wanted.Cache}, err
		case "shard":
			made, total := shard{}, uint32(0)
			for _, part := range wanted.Stores {
				opened, err := named.open(part.Store)
				if err != nil {
					return nil, err
				}
				made, total = append(made, opened), total+part.Weight
			}
			if total == 0 {
				return nil, errors.New("the shards have no weight")
			}
			return made, nil
		case "redis_store":
			return connect(wanted.redisConfig)
		case "grpc":
			if len(wanted.Endpoints) != 1 {
				return nil, fmt.Errorf("the stand-in takes one endpoint in a grpc store, not %d", len(wanted.Endpoints))
			}
			connection, err := dial(string(wanted.Endpoints[0].Address), wanted.Endpoints[0].TLS)
			if wanted.Type == "ac" {
				return results{reapi.NewResults(connection, wanted.Instance)}, err
			}
			return reapi.NewCache(connection, wanted.Instance), err
		default:
			return nil, fmt.Errorf("the stand-in has no stores of kind %s", kind)
		}
	}
	return nil, errors.New("it has no kind")
}
