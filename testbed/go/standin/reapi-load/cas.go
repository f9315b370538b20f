package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	bspb "google.golang.org/genproto/googleapis/bytestream"

	"testbed/standin/reapi"
)

// smallSize is how many bytes a small blob has.
const smallSize = 900

// cas sends requests to a CAS one after another, kind by kind. After each kind it prints how many milliseconds each
// answer took: {"kind": "FindMissingBlobs of 20", "ms": [0.8, …]}.
func cas(to *servers) error {
	seconds := flag.Float64("seconds", 10, "for each kind")
	large := flag.Int("large", 1<<20, "bytes of a large one")
	other := flag.String("other", "", "`ENDPOINT` of another CAS pod, at which blobs are read that the first one has just got")
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration((10**seconds+60)*float64(time.Second)))
	defer cancel()
	cache, err := to.cache()
	if err != nil {
		return err
	}
	// The same blobs are read again and again, because only the speed of the answers is measured.
	big, err := stream(ctx, cache, *large)
	if err != nil {
		return err
	}
	small := make([]*repb.Digest, 20)
	for index := range small {
		if small[index], err = stream(ctx, cache, smallSize); err != nil {
			return err
		}
	}
	many := slices.Clone(small)
	for len(many) < 1000 {
		many = append(many, reapi.Digest(random(smallSize))) // of a blob that is missing
	}
	find := func(digests []*repb.Digest) func() error {
		return func() error {
			_, err := cache.Client.FindMissingBlobs(ctx, &repb.FindMissingBlobsRequest{InstanceName: to.instance, BlobDigests: digests})
			return err
		}
	}
	type kind struct {
		name string
		ask  func() error
		// before happens before each request, and is not measured.
		before func() error
	}
	kinds := []kind{
		{"FindMissingBlobs of 20", find(small), nil},
		{"FindMissingBlobs of 1,000", find(many), nil},
		{"BatchUpdateBlobs of 1, small", func() error {
			content := random(smallSize)
			return cache.Put(ctx, reapi.Digest(content), content)
		}, nil},
		{"BatchReadBlobs of 1, small", func() error { _, err := cache.Get(ctx, small[0]); return err }, nil},
		{"ByteStream.Read, small", func() error { _, err := read(ctx, cache, small[0]); return err }, nil},
		{"ByteStream.Read, large", func() error { _, err := read(ctx, cache, big); return err }, nil},
		{"ByteStream.Write, large", func() error { _, err := stream(ctx, cache, *large); return err }, nil},
	}
	if *other != "" {
		connection, err := to.dial(*other)
		if err != nil {
			return err
		}
		there, fresh := reapi.NewCache(connection, to.instance), (*repb.Digest)(nil)
		write := func(size int) func() error {
			return func() (err error) { fresh, err = stream(ctx, cache, size); return err }
		}
		get := func() error { _, err := there.Get(ctx, fresh); return err }
		kinds = append(kinds,
			kind{"BatchReadBlobs of 1, small, at the other", get, write(smallSize)},
			kind{"ByteStream.Read, large, at the other", func() error { _, err := read(ctx, there, fresh); return err }, write(*large)})
	}
	for _, kind := range kinds {
		took := []float64{}
		for began := time.Now(); time.Since(began).Seconds() < *seconds; {
			if kind.before != nil {
				if err := kind.before(); err != nil {
					return fmt.Errorf("%s: %w", kind.name, err)
				}
			}
			asked := time.Now()
			if err := kind.ask(); err != nil {
				return fmt.Errorf("%s: %w", kind.name, err)
			}
			took = append(took, float64(time.Since(asked).Microseconds())/1000)
		}
		if err := json.NewEncoder(os.Stdout).Encode(map[string]any{"kind": kind.name, "ms": took}); err != nil {
			return err
		}
	}
	return nil
}

func random(size int) []byte {
	content := make([]byte, size)
	_, _ = rand.Read(content) // Read never fails
	return content
}

// stream stores a new blob by ByteStream, and returns its digest.
func stream(ctx context.Context, to reapi.Cache, size int) (*repb.Digest, error) {
	content := random(size)
	digest := reapi.Digest(content)
	return digest, write(ctx, to, digest, content)
}

// read returns a blob by ByteStream.
func read(ctx context.Context, from reapi.Cache, digest *repb.Digest) ([]byte, error) {
	name := from.Instance + resource(from, digest)
	stream, err := bspb.NewByteStreamClient(from.Connection).Read(ctx, &bspb.ReadRequest{ResourceName: name})
	var content []byte
	for err == nil {
		var part *bspb.ReadResponse
		part, err = stream.Recv()
		content = append(content, part.GetData()...)
	}
	if !errors.Is(err, io.EOF) {
		return nil, err
	}
	return reapi.Decompress(from.Compressor, content)
}
