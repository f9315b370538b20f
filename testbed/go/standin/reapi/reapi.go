// Package reapi has the parts of the Remote Execution API that both the stand-in and the load generator need.
package reapi

import (
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

// patience is how long a call of a Cache may take, its retries included.
const patience = 2 * time.Minute

// retries configures gRPC to repeat the calls that may be repeated.
const retries = `{"methodConfig": [{
  "name": [{"service": "build.bazel.remote.execution.v2.ContentAddressableStorage"},
           {"service": "build.bazel.remote.execution.v2.ActionCache"}],
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

// Trust reads the settings of TLS from files: the CA to trust (by default those of the system), and the client's own
// certificate and key.
func Trust(authority, certificate, key string) (*tls.Config, error) {
	settings := &tls.Config{}
	if authority != "" {
		var err error
		if settings.RootCAs, err = Authorities(authority); err != nil {
			return nil, err
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

// Authorities reads the CAs of a file.
func Authorities(file string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	found := x509.NewCertPool()
	if !found.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s has no certificate", file)
	}
	return found, nil
}

// Dial prepares a connection to grpc://HOST:PORT, which is made, and made again, when it is needed. The name is looked
// up each time.
func Dial(address string) (*grpc.ClientConn, error) { return DialVia(address, "", nil) }

// DialVia is like Dial, but also takes grpcs://HOST:PORT, with settings of TLS. If via is not empty, the connection
// goes to that address instead.
func DialVia(address, via string, settings *tls.Config) (*grpc.ClientConn, error) {
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
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(security),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: eager, MinConnectTimeout: 5 * time.Second}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 20 * time.Second, Timeout: 10 * time.Second}),
		grpc.WithDefaultServiceConfig(retries),
		grpc.WithDefaultCallOptions(
			grpc.WaitForReady(true), grpc.MaxCallRecvMsgSize(MaxMessage), grpc.MaxCallSendMsgSize(MaxMessage)),
	}
	if via != "" {
		options = append(options, grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", via)
		}))
	}
	return grpc.NewClient("passthrough:///"+target, options...)
}

// Cache is the client of a CAS. It transfers whole blobs, in batches.
type Cache struct {
	Instance string
	client   repb.ContentAddressableStorageClient
}

// NewCache returns a client for the CAS of an instance.
func NewCache(connection *grpc.ClientConn, instance string) Cache {
	return Cache{instance, repb.NewContentAddressableStorageClient(connection)}
}

// Missing returns those of the digests whose blobs are not there.
func (c Cache) Missing(ctx context.Context, digests []*repb.Digest) ([]*repb.Digest, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	answer, err := c.client.FindMissingBlobs(ctx,
		&repb.FindMissingBlobsRequest{InstanceName: c.Instance, BlobDigests: digests})
	return answer.GetMissingBlobDigests(), err
}

// Get returns a blob, or an error of code NotFound.
func (c Cache) Get(ctx context.Context, digest *repb.Digest) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	answer, err := c.client.BatchReadBlobs(ctx,
		&repb.BatchReadBlobsRequest{InstanceName: c.Instance, Digests: []*repb.Digest{digest}})
	if err != nil {
		return nil, err
	}
	if len(answer.Responses) != 1 {
		return nil, status.Errorf(codes.Internal, "asked for one blob, got %d", len(answer.Responses))
	}
	return answer.Responses[0].Data, status.ErrorProto(answer.Responses[0].Status)
}

// Put stores a blob.
func (c Cache) Put(ctx context.Context, digest *repb.Digest, content []byte) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	blob := &repb.BatchUpdateBlobsRequest_Request{Digest: digest, Data: content}
	answer, err := c.client.BatchUpdateBlobs(ctx, &repb.BatchUpdateBlobsRequest{
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

// Results is the client of an action cache.
type Results struct {
	Instance string
	client   repb.ActionCacheClient
}

// NewResults returns a client for the action cache of an instance.
func NewResults(connection *grpc.ClientConn, instance string) Results {
	return Results{instance, repb.NewActionCacheClient(connection)}
}

// Get returns the result of an action, or an error of code NotFound.
func (r Results) Get(ctx context.Context, action *repb.Digest) (*repb.ActionResult, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return r.client.GetActionResult(ctx, &repb.GetActionResultRequest{InstanceName: r.Instance, ActionDigest: action})
}

// Put stores the result of an action.
func (r Results) Put(ctx context.Context, action *repb.Digest, result *repb.ActionResult) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	_, err := r.client.UpdateActionResult(ctx, &repb.UpdateActionResultRequest{
		InstanceName: r.Instance, ActionDigest: action, ActionResult: result})
	return err
}
