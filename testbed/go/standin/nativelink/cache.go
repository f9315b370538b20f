package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"regexp"
	"slices"
	"strconv"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"github.com/bazelbuild/remote-apis/build/bazel/semver"
	bspb "google.golang.org/genproto/googleapis/bytestream"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// cache serves CAS, ByteStream, ActionCache and Capabilities of one listener, by instance name.
type cache struct {
	repb.UnimplementedContentAddressableStorageServer
	repb.UnimplementedActionCacheServer
	repb.UnimplementedCapabilitiesServer
	bspb.UnimplementedByteStreamServer
	cas, ac  map[string]store
	readOnly map[string]bool
	executes map[string]bool // has each instance with capabilities, and true if it executes
}

func pick[V any](by map[string]V, instance string) (V, error) {
	found, there := by[instance]
	if !there {
		return found, status.Errorf(codes.NotFound, "instance %q is not served here", instance)
	}
	return found, nil
}

func (c *cache) GetCapabilities(_ context.Context, asked *repb.GetCapabilitiesRequest) (*repb.ServerCapabilities, error) {
	executes, err := pick(c.executes, asked.InstanceName)
	if err != nil {
		return nil, err
	}
	functions := []repb.DigestFunction_Value{repb.DigestFunction_SHA256}
	answer := &repb.ServerCapabilities{
		CacheCapabilities: &repb.CacheCapabilities{
			DigestFunctions:               functions,
			ActionCacheUpdateCapabilities: &repb.ActionCacheUpdateCapabilities{UpdateEnabled: true},
			MaxBatchTotalSizeBytes:        4 << 20,
			SymlinkAbsolutePathStrategy:   repb.SymlinkAbsolutePathStrategy_ALLOWED,
		},
		LowApiVersion:  &semver.SemVer{Major: 2},
		HighApiVersion: &semver.SemVer{Major: 2, Minor: 3},
	}
	if executes {
		answer.ExecutionCapabilities = &repb.ExecutionCapabilities{
			DigestFunction: functions[0], DigestFunctions: functions, ExecEnabled: true,
		}
	}
	return answer, nil
}

func (c *cache) FindMissingBlobs(ctx context.Context, asked *repb.FindMissingBlobsRequest) (*repb.FindMissingBlobsResponse, error) {
	from, err := pick(c.cas, asked.InstanceName)
	if err != nil {
		return nil, err
	}
	lost, err := missing(ctx, from, asked.BlobDigests)
	return &repb.FindMissingBlobsResponse{MissingBlobDigests: lost}, err
}

func (c *cache) BatchReadBlobs(ctx context.Context, asked *repb.BatchReadBlobsRequest) (*repb.BatchReadBlobsResponse, error) {
	from, err := pick(c.cas, asked.InstanceName)
	if err != nil {
		return nil, err
	}
	answer := &repb.BatchReadBlobsResponse{}
	for _, wanted := range asked.Digests {
		content, err := fetch(ctx, from, wanted)
		answer.Responses = append(answer.Responses, &repb.BatchReadBlobsResponse_Response{
			Digest: wanted, Data: content, Status: status.Convert(err).Proto()})
	}
	return answer, nil
}

func (c *cache) BatchUpdateBlobs(ctx context.Context, asked *repb.BatchUpdateBlobsRequest) (*repb.BatchUpdateBlobsResponse, error) {
	in, err := pick(c.cas, asked.InstanceName)
	if err != nil {
		return nil, err
	}
	answer := &repb.BatchUpdateBlobsResponse{}
	for _, blob := range asked.Requests {
		err := in.Put(ctx, blob.Digest, blob.Data)
		answer.Responses = append(answer.Responses, &repb.BatchUpdateBlobsResponse_Response{
			Digest: blob.Digest, Status: status.Convert(err).Proto()})
	}
	return answer, nil
}

var blobName = regexp.MustCompile(`^(.*?)/?(?:uploads/[^/]+/)?blobs/([0-9a-f]{64})/(\d+)`)

// named returns what a resource of the form INSTANCE/[uploads/UUID/]blobs/HASH/SIZE[/…] means.
func (c *cache) named(name string) (store, digest, error) {
	parts := blobName.FindStringSubmatch(name)
	if parts == nil {
		return nil, nil, status.Errorf(codes.InvalidArgument, "%q names no blob", name)
	}
	size, err := strconv.ParseInt(parts[3], 10, 64)
	if err != nil {
		return nil, nil, status.Errorf(codes.InvalidArgument, "%q: %v", name, err)
	}
	found, err := pick(c.cas, parts[1])
	return found, &repb.Digest{Hash: parts[2], SizeBytes: size}, err
}

func (c *cache) Read(asked *bspb.ReadRequest, stream bspb.ByteStream_ReadServer) error {
	from, wanted, err := c.named(asked.ResourceName)
	if err != nil {
		return err
	}
	content, err := fetch(stream.Context(), from, wanted)
	if err != nil {
		return err
	}
	if asked.ReadOffset < 0 || asked.ReadOffset > int64(len(content)) {
		return status.Errorf(codes.OutOfRange, "offset %d of %d", asked.ReadOffset, len(content))
	}
	for part := range slices.Chunk(content[asked.ReadOffset:], 1<<20) {
		if err := stream.Send(&bspb.ReadResponse{Data: part}); err != nil {
			return err
		}
	}
	return nil
}

func (c *cache) Write(stream bspb.ByteStream_WriteServer) error {
	var name string
	var content bytes.Buffer
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		name = cmp.Or(name, part.ResourceName)
		content.Write(part.Data)
	}
	in, wanted, err := c.named(name)
	if err == nil {
		err = in.Put(stream.Context(), wanted, content.Bytes())
	}
	if err != nil {
		return err
	}
	return stream.SendAndClose(&bspb.WriteResponse{CommittedSize: int64(content.Len())})
}

func (c *cache) GetActionResult(ctx context.Context, asked *repb.GetActionResultRequest) (*repb.ActionResult, error) {
	from, err := pick(c.ac, asked.InstanceName)
	if err != nil {
		return nil, err
	}
	content, err := from.Get(ctx, asked.ActionDigest)
	if err != nil {
		return nil, err
	}
	result := &repb.ActionResult{}
	return result, proto.Unmarshal(content, result)
}

func (c *cache) UpdateActionResult(ctx context.Context, asked *repb.UpdateActionResultRequest) (*repb.ActionResult, error) {
	in, err := pick(c.ac, asked.InstanceName)
	if err != nil {
		return nil, err
	}
	if c.readOnly[asked.InstanceName] {
		return nil, status.Errorf(codes.PermissionDenied, "the action cache of %q is read-only", asked.InstanceName)
	}
	content, err := proto.Marshal(asked.ActionResult)
	if err != nil {
		return nil, err
	}
	return asked.ActionResult, in.Put(ctx, asked.ActionDigest, content)
}
