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
	"sync"
	"time"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	bspb "google.golang.org/genproto/googleapis/bytestream"

	"testbed/standin/reapi"
)

// smallSize is how many bytes a small blob has.
const smallSize = 900

// rate is the report on one kind of requests.
type rate struct {
	Kind      string  `json:"kind"`
	PerSecond float64 `json:"per_second"`
	P50       float64 `json:"p50_ms"`
	P99       float64 `json:"p99_ms"`
}

// cas sends requests to a CAS as fast as it answers, one kind after another. After each kind it prints how fast
// the CAS answered: {"kind": "FindMissingBlobs of 20", "per_second": 500, …}.
func cas(to *servers) error {
	concurrency := flag.Int("concurrency", 32, "how many at a time, each on a connection of its own")
	seconds := flag.Float64("seconds", 10, "for each kind")
	large := flag.Int("large", 1<<20, "bytes of a large one")
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration((10**seconds+60)*float64(time.Second)))
	defer cancel()
	clients := make([]reapi.Cache, *concurrency)
	for index := range clients {
		var err error
		if clients[index], err = to.cache(); err != nil {
			return err
		}
	}
	// All clients read the same blobs, because only the speed of the answers is measured.
	big, err := stream(ctx, clients[0], *large)
	if err != nil {
		return err
	}
	small := make([]*repb.Digest, 20)
	for index := range small {
		if small[index], err = stream(ctx, clients[0], smallSize); err != nil {
			return err
		}
	}
	for _, kind := range []struct {
		name string
		ask  func(reapi.Cache) error
	}{
		{"FindMissingBlobs of 20", func(c reapi.Cache) error {
			_, err := c.Client.FindMissingBlobs(ctx, &repb.FindMissingBlobsRequest{InstanceName: to.instance, BlobDigests: small})
			return err
		}},
		{"BatchUpdateBlobs of 1, small", func(c reapi.Cache) error {
			content := random(smallSize)
			return c.Put(ctx, reapi.Digest(content), content)
		}},
		{"BatchReadBlobs of 1, small", func(c reapi.Cache) error { _, err := c.Get(ctx, small[0]); return err }},
		{"ByteStream.Read, small", func(c reapi.Cache) error { return read(ctx, c, small[0]) }},
		{"ByteStream.Read, large", func(c reapi.Cache) error { return read(ctx, c, big) }},
		{"ByteStream.Write, large", func(c reapi.Cache) error { _, err := stream(ctx, c, *large); return err }},
	} {
		found, err := measured(clients, *seconds, kind.ask)
		if err != nil {
			return fmt.Errorf("%s: %w", kind.name, err)
		}
		found.Kind = kind.name
		if err := json.NewEncoder(os.Stdout).Encode(found); err != nil {
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

func read(ctx context.Context, from reapi.Cache, digest *repb.Digest) error {
	name := fmt.Sprintf("%s/blobs/%s/%d", from.Instance, digest.Hash, digest.SizeBytes)
	stream, err := bspb.NewByteStreamClient(from.Connection).Read(ctx, &bspb.ReadRequest{ResourceName: name})
	for err == nil {
		_, err = stream.Recv()
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// measured has all clients send requests for some seconds, and returns how fast the answers came.
func measured(clients []reapi.Cache, seconds float64, ask func(reapi.Cache) error) (rate, error) {
	var lock sync.Mutex
	var took []float64
	began := time.Now()
	err := atOnce(len(clients), len(clients), func(index int) error {
		var own []float64
		for time.Since(began).Seconds() < seconds {
			asked := time.Now()
			if err := ask(clients[index]); err != nil {
				return err
			}
			own = append(own, float64(time.Since(asked).Microseconds())/1000)
		}
		lock.Lock()
		defer lock.Unlock()
		took = append(took, own...)
		return nil
	})
	if err != nil || len(took) == 0 {
		return rate{}, err
	}
	elapsed := time.Since(began).Seconds()
	slices.Sort(took)
	return rate{"", float64(len(took)) / elapsed, took[len(took)/2], took[len(took)*99/100]}, nil
}
