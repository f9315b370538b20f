package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"github.com/google/uuid"
	bspb "google.golang.org/genproto/googleapis/bytestream"

	"testbed/standin/reapi"
)

// put sends bytes to a CAS under the digest of other bytes of the same length, in a batch and as a stream. It prints
// what became of each: {"batch": "refused: …", "stream": "taken, and read back"}. With --compressed it also sends them
// as zstd, and reads all of them both plain and as zstd: {"batch ZSTD": …}.
func put(to *servers) error {
	right := flag.Bool("right", false, "send the bytes of the digest: they are to be taken")
	size := flag.Int("size", 31, "how many bytes, 4 MiB at most")
	compressed := flag.Bool("compressed", false, "as zstd, too")
	flag.Parse()
	cache, err := to.cache()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	caches := map[string]reapi.Cache{"": cache}
	if *compressed {
		cache.Compressor = repb.Compressor_ZSTD
		caches[" ZSTD"] = cache
	}
	told := map[string]string{}
	for by, cache := range caches {
		for name, way := range ways {
			good := bytes.Repeat(random(31), *size/31+1)[:*size] // of which zstd makes less
			digest := reapi.Digest(good)
			content := good
			if !*right {
				content = append([]byte("evil"), good[4:]...)
			}
			if err := way.send(ctx, cache, digest, content); err != nil {
				told[name+by] = "refused: " + err.Error()
			} else {
				told[name+by] = back(ctx, caches, digest, content)
			}
		}
	}
	return json.NewEncoder(os.Stdout).Encode(told)
}

// ways are those in which a blob travels.
var ways = map[string]struct {
	send func(context.Context, reapi.Cache, *repb.Digest, []byte) error
	get  func(context.Context, reapi.Cache, *repb.Digest) ([]byte, error)
}{
	"batch": {
		func(ctx context.Context, to reapi.Cache, digest *repb.Digest, content []byte) error {
			return to.Put(ctx, digest, content)
		},
		func(ctx context.Context, from reapi.Cache, digest *repb.Digest) ([]byte, error) {
			return from.Get(ctx, digest)
		},
	},
	"stream": {write, read},
}

// back reads a blob in each way from each of the caches, and says whether it is the content.
func back(ctx context.Context, caches map[string]reapi.Cache, digest *repb.Digest, content []byte) string {
	for by, cache := range caches {
		for name, way := range ways {
			if found, err := way.get(ctx, cache, digest); err != nil {
				return fmt.Sprintf("taken, and not served (%s%s): %v", name, by, err)
			} else if !bytes.Equal(found, content) {
				return fmt.Sprintf("taken, and something else read back (%s%s)", name, by)
			}
		}
	}
	return "taken, and read back"
}

// result sends a made-up result of an action that never ran, and prints what became of it: "refused: …" or "taken".
func result(to *servers) error {
	flag.Parse()
	connection, err := to.dial(to.cas)
	if err != nil {
		return err
	}
	action := reapi.Digest([]byte(rand.Text()))
	told := "taken"
	_, err = repb.NewActionCacheClient(connection).UpdateActionResult(context.Background(), &repb.UpdateActionResultRequest{
		InstanceName: to.instance, ActionDigest: action, ActionResult: &repb.ActionResult{StdoutRaw: []byte("made up")}})
	if err != nil {
		told = "refused: " + err.Error()
	}
	_, err = fmt.Println(told)
	return err
}

// chunk is how many bytes a message of an upload has. NativeLink takes 4 MiB at most.
const chunk = 1 << 20

// write sends a blob by ByteStream. A server may refuse it before its end.
func write(ctx context.Context, to reapi.Cache, digest *repb.Digest, content []byte) error {
	stream, err := bspb.NewByteStreamClient(to.Connection).Write(ctx)
	if err != nil {
		return err
	}
	name, sent := to.Instance+"/uploads/"+uuid.NewString()+resource(to, digest), reapi.Compress(to.Compressor, content)
	for offset := 0; ; offset += chunk {
		next := min(offset+chunk, len(sent))
		err := stream.Send(&bspb.WriteRequest{
			ResourceName: name, WriteOffset: int64(offset), FinishWrite: next == len(sent), Data: sent[offset:next],
		})
		if err != nil && err != io.EOF {
			return err
		}
		if err == io.EOF || next == len(sent) { // CloseAndRecv then returns the reason
			_, err = stream.CloseAndRecv()
			return err
		}
	}
}

// resource returns the end of the resource name of a blob.
func resource(of reapi.Cache, digest *repb.Digest) string {
	kind := "blobs"
	if of.Compressor != repb.Compressor_IDENTITY {
		kind = "compressed-blobs/" + strings.ToLower(of.Compressor.String())
	}
	return fmt.Sprintf("/%s/%s/%d", kind, digest.Hash, digest.SizeBytes)
}
