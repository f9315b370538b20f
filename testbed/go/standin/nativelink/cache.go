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
	"strings"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"github.com/bazelbuild/remote-apis/build/bazel/semver"
	bspb "google.golang.org/genproto/googleapis/bytestream"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"testbed/standin/reapi"
)

// cache serves CAS, ByteStream, ActionCache and Capabilities of the only instance at one listener.
type cache struct {
	repb.UnimplementedContentAddressableStorageServer
	repb.UnimplementedActionCacheServer
	repb.UnimplementedCapabilitiesServer
	bspb.UnimplementedByteStreamServer
	instance           string
	cas, ac            store
	readOnly, executes bool
	compressors        []repb.Compressor_Value
}

// check refuses a call for another instance.
func (c *cache) check(ctx context.Context, asked any, _ *grpc.UnaryServerInfo, serve grpc.UnaryHandler) (any, error) {
	if named, is := asked.(interface{ GetInstanceName() string }); is && named.GetInstanceName() != c.instance {
		return nil, unserved(named.GetInstanceName())
	}
	return serve(ctx, asked)
}

func unserved(instance string) error {
	return status.Errorf(codes.NotFound, "instance %q is not served here", instance)
}

func (c *cache) GetCapabilities(context.Context, *repb.GetCapabilitiesRequest) (*repb.ServerCapabilities, error) {
	functions := []repb.DigestFunction_Value{repb.DigestFunction_SHA256}
	answer := &repb.ServerCapabilities{
		CacheCapabilities: &repb.CacheCapabilities{
			DigestFunctions:               functions,
			ActionCacheUpdateCapabilities: &repb.ActionCacheUpdateCapabilities{UpdateEnabled: true},
			MaxBatchTotalSizeBytes:        4 << 20,
			SymlinkAbsolutePathStrategy:   repb.SymlinkAbsolutePathStrategy_ALLOWED,
			SupportedCompressors:          c.compressors, SupportedBatchUpdateCompressors: c.compressors,
		},
		LowApiVersion:  &semver.SemVer{Major: 2},
		HighApiVersion: &semver.SemVer{Major: 2, Minor: 3},
	}
	if c.executes {
		answer.ExecutionCapabilities = &repb.ExecutionCapabilities{
			DigestFunction: functions[0], DigestFunctions: functions, ExecEnabled: true,
		}
	}
	return answer, nil
}

func (c *cache) FindMissingBlobs(ctx context.Context, asked *repb.FindMissingBlobsRequest) (*repb.FindMissingBlobsResponse, error) {
	lost, err := missing(ctx, c.cas, asked.BlobDigests)
	return &repb.FindMissingBlobsResponse{MissingBlobDigests: lost}, err
}

func (c *cache) BatchReadBlobs(ctx context.Context, asked *repb.BatchReadBlobsRequest) (*repb.BatchReadBlobsResponse, error) {
	answer := &repb.BatchReadBlobsResponse{}
	by := repb.Compressor_IDENTITY
	for _, each := range c.compressors {
		if slices.Contains(asked.AcceptableCompressors, each) {
			by = each
		}
	}
	for _, wanted := range asked.Digests {
		content, err := fetch(ctx, c.cas, wanted)
		answer.Responses = append(answer.Responses, &repb.BatchReadBlobsResponse_Response{
			Digest: wanted, Data: reapi.Compress(by, content), Compressor: by, Status: status.Convert(err).Proto()})
	}
	return answer, nil
}

var uncompressed = status.Error(codes.InvalidArgument, "Remote cache compression is not supported by this instance")

// put stores a blob that is compressed, as the listener allows it, or plain.
func (c *cache) put(ctx context.Context, key digest, by repb.Compressor_Value, content []byte) error {
	if by != repb.Compressor_IDENTITY && !slices.Contains(c.compressors, by) {
		return uncompressed
	}
	plain, err := reapi.Decompress(by, content)
	if err != nil {
		return err
	}
	return c.cas.Put(ctx, key, plain)
}

func (c *cache) BatchUpdateBlobs(ctx context.Context, asked *repb.BatchUpdateBlobsRequest) (*repb.BatchUpdateBlobsResponse, error) {
	answer := &repb.BatchUpdateBlobsResponse{}
	for _, blob := range asked.Requests {
		err := c.put(ctx, blob.Digest, blob.Compressor, blob.Data)
		answer.Responses = append(answer.Responses, &repb.BatchUpdateBlobsResponse_Response{
			Digest: blob.Digest, Status: status.Convert(err).Proto()})
	}
	return answer, nil
}

var blobName = regexp.MustCompile(`^(.*?)/?(?:uploads/[^/]+/)?(?:blobs|compressed-blobs/([^/]+))/([0-9a-f]{64})/(\d+)`)

// named returns the blob that INSTANCE/[uploads/UUID/]blobs/HASH/SIZE[/…] or …/compressed-blobs/zstd/HASH/SIZE[/…] means.
func (c *cache) named(name string) (digest, repb.Compressor_Value, error) {
	parts := blobName.FindStringSubmatch(name)
	if parts == nil {
		return nil, 0, status.Errorf(codes.InvalidArgument, "%q names no blob", name)
	}
	if parts[1] != c.instance {
		return nil, 0, unserved(parts[1])
	}
	by, known := repb.Compressor_Value_value[strings.ToUpper(cmp.Or(parts[2], "identity"))]
	size, err := strconv.ParseInt(parts[4], 10, 64)
	if err != nil || !known {
		return nil, 0, status.Errorf(codes.InvalidArgument, "%q: compressor %q, size: %v", name, parts[2], err)
	}
	return &repb.Digest{Hash: parts[3], SizeBytes: size}, repb.Compressor_Value(by), nil
}

func (c *cache) Read(asked *bspb.ReadRequest, stream bspb.ByteStream_ReadServer) error {
	wanted, by, err := c.named(asked.ResourceName)
	if err != nil {
		return err
	}
	if by != repb.Compressor_IDENTITY && !slices.Contains(c.compressors, by) {
		return uncompressed
	}
	content, err := fetch(stream.Context(), c.cas, wanted)
	if err != nil {
		return err
	}
	if asked.ReadOffset < 0 || asked.ReadOffset > int64(len(content)) {
		return status.Errorf(codes.OutOfRange, "offset %d of %d", asked.ReadOffset, len(content))
	}
	// The offset is one of the plain content.
	for part := range slices.Chunk(reapi.Compress(by, content[asked.ReadOffset:]), 1<<20) {
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
	wanted, by, err := c.named(name)
	if err == nil {
		err = c.put(stream.Context(), wanted, by, content.Bytes())
	}
	if err != nil {
		return err
	}
	return stream.SendAndClose(&bspb.WriteResponse{CommittedSize: int64(content.Len())})
}

func (c *cache) GetActionResult(ctx context.Context, asked *repb.GetActionResultRequest) (*repb.ActionResult, error) {
	content, err := c.ac.Get(ctx, asked.ActionDigest)
	if err != nil {
		return nil, err
	}
	result := &repb.ActionResult{}
	return result, proto.Unmarshal(content, result)
}

func (c *cache) UpdateActionResult(ctx context.Context, asked *repb.UpdateActionResultRequest) (*repb.ActionResult, error) {
	if c.readOnly {
		return nil, status.Errorf(codes.PermissionDenied, "the action cache of %q is read-only", asked.InstanceName)
	}
	content, err := proto.Marshal(asked.ActionResult)
	if err != nil {
		return nil, err
	}
	return asked.ActionResult, c.ac.Put(ctx, asked.ActionDigest, content)
}
