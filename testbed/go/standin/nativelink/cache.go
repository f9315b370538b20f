package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"

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
	cas, streams, ac map[string]store
	readOnly         map[string]bool
	executes         map[string]bool // has each instance with capabilities, and true if it executes
}

func pick(by map[string]store, instance string) (store, error) {
	if found, there := by[instance]; there {
		return found, nil
	}
	return nil, status.Errorf(codes.NotFound, "instance %q is not served here", instance)
}

func (c *cache) GetCapabilities(_ context.Context, asked *repb.GetCapabilitiesRequest) (*repb.ServerCapabilities, error) {
	executes, there := c.executes[asked.InstanceName]
	if !there {
		return nil, status.Errorf(codes.NotFound, "instance %q is not served here", asked.InstanceName)
	}
	sha256 := repb.DigestFunction_SHA256
	answer := &repb.ServerCapabilities{
		CacheCapabilities: &repb.CacheCapabilities{
			DigestFunctions:               []repb.DigestFunction_Value{sha256},
			ActionCacheUpdateCapabilities: &repb.ActionCacheUpdateCapabilities{UpdateEnabled: true},
			MaxBatchTotalSizeBytes:        4 << 20,
			SymlinkAbsolutePathStrategy:   repb.SymlinkAbsolutePathStrategy_ALLOWED,
		},
		LowApiVersion:  &semver.SemVer{Major: 2},
		HighApiVersion: &semver.SemVer{Major: 2, Minor: 3},
	}
	if executes {
		answer.ExecutionCapabilities = &repb.ExecutionCapabilities{
			DigestFunction: sha256, DigestFunctions: []repb.DigestFunction_Value{sha256}, ExecEnabled: true,
		}
	}
	return answer, nil
}

func (c *cache) FindMissingBlobs(ctx context.Context, asked *repb.FindMissingBlobsRequest) (*repb.FindMissingBlobsResponse, error) {
	from, err := pick(c.cas, asked.InstanceName)
	if err != nil {
		return nil, err
	}
	wanted := slices.DeleteFunc(asked.BlobDigests, func(of digest) bool { return of.SizeBytes == 0 })
	missing, err := from.Missing(ctx, wanted)
	return &repb.FindMissingBlobsResponse{MissingBlobDigests: missing}, err
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

var sha256Hash = regexp.MustCompile("^[0-9a-f]{64}$")

// check fails if a digest is not valid or names another size than that of the content. Only a verify store compares the
// hash with the content.
func (c *cache) check(of digest, content []byte) error {
	switch {
	case !sha256Hash.MatchString(of.GetHash()):
		return status.Errorf(codes.InvalidArgument, "Invalid sha256 hash: %s", of.GetHash())
	case of.SizeBytes == int64(len(content)):
		return nil
	}
	return status.Errorf(codes.InvalidArgument, "Identity data size %d does not match expected size %d", len(content), of.SizeBytes)
}

func (c *cache) BatchUpdateBlobs(ctx context.Context, asked *repb.BatchUpdateBlobsRequest) (*repb.BatchUpdateBlobsResponse, error) {
	in, err := pick(c.cas, asked.InstanceName)
	if err != nil {
		return nil, err
	}
	for _, blob := range asked.Requests {
		if err := c.check(blob.Digest, blob.Data); err != nil {
			return nil, err
		}
	}
	answer := &repb.BatchUpdateBlobsResponse{}
	for _, blob := range asked.Requests {
		err := in.Put(ctx, blob.Digest, blob.Data)
		answer.Responses = append(answer.Responses, &repb.BatchUpdateBlobsResponse_Response{
			Digest: blob.Digest, Status: status.Convert(err).Proto()})
	}
	return answer, nil
}

// resource splits a name of the form INSTANCE/[uploads/UUID/]blobs/HASH/SIZE[/…].
func (c *cache) resource(name string) (store, digest, error) {
	parts := strings.Split(name, "/")
	blobs := slices.Index(parts, "blobs")
	if blobs < 0 || len(parts) < blobs+3 {
		return nil, nil, status.Errorf(codes.InvalidArgument, "%q names no blob", name)
	}
	size, err := strconv.ParseInt(parts[blobs+2], 10, 64)
	if err != nil {
		return nil, nil, status.Errorf(codes.InvalidArgument, "%q: %v", name, err)
	}
	end := blobs
	if uploads := slices.Index(parts, "uploads"); uploads >= 0 {
		end = uploads
	}
	found, err := pick(c.streams, strings.Join(parts[:end], "/"))
	return found, &repb.Digest{Hash: parts[blobs+1], SizeBytes: size}, err
}

func (c *cache) Read(asked *bspb.ReadRequest, stream bspb.ByteStream_ReadServer) error {
	from, wanted, err := c.resource(asked.ResourceName)
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
	content = content[asked.ReadOffset:]
	if asked.ReadLimit > 0 {
		content = content[:min(asked.ReadLimit, int64(len(content)))]
	}
	for part := range slices.Chunk(content, 1<<20) {
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
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if part != nil {
			if name == "" {
				name = part.ResourceName
			}
			content.Write(part.Data)
		}
		if err != nil || part.FinishWrite {
			break
		}
	}
	in, wanted, err := c.resource(name)
	if err == nil {
		err = c.check(wanted, content.Bytes())
	}
	if err == nil {
		err = in.Put(stream.Context(), wanted, content.Bytes())
	}
	if err != nil {
		return err
	}
	return stream.SendAndClose(&bspb.WriteResponse{CommittedSize: int64(content.Len())})
}

func (c *cache) QueryWriteStatus(ctx context.Context, asked *bspb.QueryWriteStatusRequest) (*bspb.QueryWriteStatusResponse, error) {
	in, wanted, err := c.resource(asked.ResourceName)
	if err != nil {
		return nil, err
	}
	missing, err := in.Missing(ctx, []digest{wanted})
	if err != nil || len(missing) > 0 {
		return &bspb.QueryWriteStatusResponse{}, err
	}
	return &bspb.QueryWriteStatusResponse{CommittedSize: wanted.SizeBytes, Complete: true}, nil
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
