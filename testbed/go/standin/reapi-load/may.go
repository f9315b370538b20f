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
	bspb "google.golang.org/genproto/googleapis/bytestream"
	"google.golang.org/grpc/status"

	"testbed/standin/reapi"
)

// may calls each method once, of blobs and actions that do not exist, and prints the codes of the answers by method:
// {"Execute": "PermissionDenied", "FindMissingBlobs": "OK", …}.
func may(to *servers) error {
	flag.Parse()
	cache, err := to.cache()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	content := []byte(rand.Text())
	digest := reapi.Digest(content)
	digests := []*repb.Digest{digest}
	results, streams := repb.NewActionCacheClient(cache.Connection), bspb.NewByteStreamClient(cache.Connection)
	blob := fmt.Sprintf("%s/blobs/%s/%d", to.instance, digest.Hash, digest.SizeBytes)
	calls := map[string]func() error{
		"GetCapabilities": func() error {
			_, err := repb.NewCapabilitiesClient(cache.Connection).GetCapabilities(
				ctx, &repb.GetCapabilitiesRequest{InstanceName: to.instance})
			return err
		},
		"FindMissingBlobs": func() error {
			_, err := cache.Client.FindMissingBlobs(
				ctx, &repb.FindMissingBlobsRequest{InstanceName: to.instance, BlobDigests: digests})
			return err
		},
		"BatchReadBlobs": func() error {
			_, err := cache.Client.BatchReadBlobs(
				ctx, &repb.BatchReadBlobsRequest{InstanceName: to.instance, Digests: digests})
			return err
		},
		"Read": func() error {
			stream, err := streams.Read(ctx, &bspb.ReadRequest{ResourceName: blob})
			if err == nil {
				_, err = stream.Recv()
			}
			return err
		},
		"GetActionResult": func() error {
			_, err := results.GetActionResult(
				ctx, &repb.GetActionResultRequest{InstanceName: to.instance, ActionDigest: digest})
			return err
		},
		"BatchUpdateBlobs": func() error {
			_, err := cache.Client.BatchUpdateBlobs(ctx, &repb.BatchUpdateBlobsRequest{InstanceName: to.instance})
			return err
		},
		"Write": func() error { return write(ctx, cache, digest, content) },
		"QueryWriteStatus": func() error {
			_, err := streams.QueryWriteStatus(
				ctx, &bspb.QueryWriteStatusRequest{ResourceName: upload(cache, digest)})
			return err
		},
		"Execute": func() error {
			stream, err := repb.NewExecutionClient(cache.Connection).Execute(ctx, &repb.ExecuteRequest{
				InstanceName: to.instance, ActionDigest: reapi.Digest([]byte(rand.Text()))})
			if err == nil {
				_, err = stream.Recv()
			}
			return err
		},
		"UpdateActionResult": func() error {
			_, err := results.UpdateActionResult(ctx, &repb.UpdateActionResultRequest{
				InstanceName: to.instance, ActionDigest: digest, ActionResult: &repb.ActionResult{StdoutRaw: content}})
			return err
		},
	}
	told := map[string]string{}
	for name, call := range calls {
		told[name] = status.Code(call()).String()
	}
	return json.NewEncoder(os.Stdout).Encode(told)
}
