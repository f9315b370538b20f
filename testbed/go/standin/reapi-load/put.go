package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"time"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"github.com/google/uuid"
	bspb "google.golang.org/genproto/googleapis/bytestream"

	"testbed/standin/reapi"
)

// put sends bytes to a CAS under the digest of other bytes of the same length, in a batch and as a stream. It prints
// what became of each: {"batch": "refused: …", "stream": "taken, and read back"}.
func put(to *servers) error {
	right := flag.Bool("right", false, "send the bytes of the digest: they are to be taken")
	size := flag.Int("size", 31, "how many bytes, 4 MiB at most")
	flag.Parse()
	cache, err := to.cache()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	ways := map[string]func(*repb.Digest, []byte) error{
		"batch":  func(digest *repb.Digest, content []byte) error { return cache.Put(ctx, digest, content) },
		"stream": func(digest *repb.Digest, content []byte) error { return write(ctx, cache, digest, content) },
	}
	told := map[string]string{}
	for name, send := range ways {
		good := random(*size)
		digest := reapi.Digest(good)
		content := good
		if !*right {
			content = append([]byte("evil"), good[4:]...)
		}
		if err := send(digest, content); err != nil {
			told[name] = "refused: " + err.Error()
		} else if back, err := cache.Get(ctx, digest); err != nil {
			told[name] = "taken, and not served: " + err.Error()
		} else if string(back) == string(content) {
			told[name] = "taken, and read back"
		} else {
			told[name] = "taken, and something else read back"
		}
	}
	return json.NewEncoder(os.Stdout).Encode(told)
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
	return send(ctx, bspb.NewByteStreamClient(to.Connection), upload(to.Instance, digest), content, 0)
}

// upload returns the resource name of a new upload.
func upload(instance string, digest *repb.Digest) string {
	return fmt.Sprintf("%s/uploads/%s/blobs/%s/%d", instance, uuid.NewString(), digest.Hash, digest.SizeBytes)
}
