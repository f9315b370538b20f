// Package reapi has the parts of the Remote Execution API that both the stand-in and the load generator need.
package reapi

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"github.com/klauspost/compress/zstd"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// MaxMessage is the size of the largest message. It is large because our own programs send whole blobs.
const MaxMessage = 1 << 30

// methods configures gRPC to repeat the calls that may be repeated. The time limit includes the retries.
const methods = `{"methodConfig": [{
  "name": [{"service": "build.bazel.remote.execution.v2.ContentAddressableStorage"},
           {"service": "build.bazel.remote.execution.v2.ActionCache"}],
  "timeout": "120s",
  "retryPolicy": {"maxAttempts": 5, "initialBackoff": "0.3s", "maxBackoff": "3s", "backoffMultiplier": 2,
                  "retryableStatusCodes": ["UNAVAILABLE"]}}]}`

// Digest returns the digest of a blob.
func Digest(content []byte) *repb.Digest {
	sum := sha256.Sum256(content)
	return &repb.Digest{Hash: hex.EncodeToString(sum[:]), SizeBytes: int64(len(content))}
}

// Encode returns the digest of a message, and the deterministic encoding that the digest is taken of.
func Encode(message proto.Message) (*repb.Digest, []byte) {
	content, err := proto.MarshalOptions{Deterministic: true}.Marshal(message)
	if err != nil {
		panic(err) // only a text that is not UTF-8 fails
	}
	return Digest(content), content
}

// TLS reads settings from files, each of which may be "": the CA to trust (by default those of the system), and the
// own certificate and key.
func TLS(authority, certificate, key string) (*tls.Config, error) {
	settings := &tls.Config{}
	if authority != "" {
		pem, err := os.ReadFile(authority)
		if err != nil {
			return nil, err
		}
		settings.RootCAs = x509.NewCertPool()
		if !settings.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s has no certificate", authority)
		}
	}
	if certificate != "" {
		pair, err := tls.LoadX509KeyPair(certificate, key)
		if err != nil {
			return nil, err
		}
		settings.Certificates = []tls.Certificate{pair}
	}
	return settings, nil
}

// Dial prepares a connection to grpc://HOST:PORT, or to grpcs://HOST:PORT with settings of TLS. The connection is made,
// and made again, when it is needed, and the name is looked up each time. If via is not empty, the connection goes to
// that address instead. The options override ours.
func Dial(address, via string, settings *tls.Config, options ...grpc.DialOption) (*grpc.ClientConn, error) {
	scheme, target, _ := strings.Cut(address, "://")
	security := insecure.NewCredentials()
	switch scheme {
	case "grpc", "http":
	case "grpcs", "https":
		security = credentials.NewTLS(settings)
	default:
		return nil, fmt.Errorf("%s: only grpc://HOST:PORT and grpcs://HOST:PORT are known here", address)
	}
	eager := backoff.Config{BaseDelay: 200 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second}
	return grpc.NewClient("passthrough:///"+target, append([]grpc.DialOption{
		grpc.WithTransportCredentials(security),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: eager, MinConnectTimeout: 5 * time.Second}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 20 * time.Second, Timeout: 10 * time.Second}),
		grpc.WithDefaultServiceConfig(methods),
		grpc.WithDefaultCallOptions(
			grpc.WaitForReady(true), grpc.MaxCallRecvMsgSize(MaxMessage), grpc.MaxCallSendMsgSize(MaxMessage)),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", cmp.Or(via, target))
		}),
	}, options...)...)
}

// Headers are sent with each call of a connection: they are an option of grpc.WithPerRPCCredentials.
type Headers map[string]string

// GetRequestMetadata returns the headers of a call.
func (h Headers) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return h, nil
}

// RequireTransportSecurity lets connections in plain text have them, too.
func (h Headers) RequireTransportSecurity() bool { return false }

// Neither fails without a stream.
var (
	encoder, _ = zstd.NewWriter(nil)
	decoder, _ = zstd.NewReader(nil)
)

// Compress returns the content as a compressor writes it.
func Compress(by repb.Compressor_Value, content []byte) []byte {
	if by == repb.Compressor_ZSTD {
		return encoder.EncodeAll(content, nil)
	}
	return content
}

// Decompress undoes Compress. It fails with code InvalidArgument.
func Decompress(by repb.Compressor_Value, content []byte) ([]byte, error) {
	if by != repb.Compressor_ZSTD {
		return content, nil
	}
	plain, err := decoder.DecodeAll(content, nil)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	return plain, nil
}

// Cache is the client of the CAS of an instance. It transfers whole blobs, in batches, compressed if it has a compressor.
type Cache struct {
	Client     repb.ContentAddressableStorageClient
	Connection *grpc.ClientConn
	Instance   string
	Compressor repb.Compressor_Value
}

// NewCache returns a client for the CAS of an instance.
func NewCache(connection *grpc.ClientConn, instance string) Cache {
	return Cache{repb.NewContentAddressableStorageClient(connection), connection, instance, repb.Compressor_IDENTITY}
}

// Get returns a blob, or an error of code NotFound.
func (c Cache) Get(ctx context.Context, digest *repb.Digest) ([]byte, error) {
	answer, err := c.Client.BatchReadBlobs(ctx, &repb.BatchReadBlobsRequest{
		InstanceName: c.Instance, Digests: []*repb.Digest{digest},
		AcceptableCompressors: []repb.Compressor_Value{c.Compressor}})
	if err != nil {
		return nil, err
	}
	if len(answer.Responses) != 1 {
		return nil, status.Errorf(codes.Internal, "asked for one blob, got %d", len(answer.Responses))
	}
	found := answer.Responses[0]
	if err := status.ErrorProto(found.Status); err != nil {
		return nil, err
	}
	return Decompress(found.Compressor, found.Data)
}

// Put stores a blob.
func (c Cache) Put(ctx context.Context, digest *repb.Digest, content []byte) error {
	blob := &repb.BatchUpdateBlobsRequest_Request{
		Digest: digest, Data: Compress(c.Compressor, content), Compressor: c.Compressor}
	answer, err := c.Client.BatchUpdateBlobs(ctx, &repb.BatchUpdateBlobsRequest{
		InstanceName: c.Instance, Requests: []*repb.BatchUpdateBlobsRequest_Request{blob}})
	if err != nil {
		return err
	}
	for _, response := range answer.Responses {
		if err := status.ErrorProto(response.Status); err != nil {
			return err
		}
	}
	return nil
}
