package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/google/uuid"
	bspb "google.golang.org/genproto/googleapis/bytestream"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"testbed/standin/reapi"
)

// resume cuts the connection of each upload in its middle, asks on another connection how much of it has arrived, and
// goes on from there, or from the beginning if the server does not tell, as Bazel does. It prints how often each thing
// happened: {"resumed": 28, "from the beginning": 1, "InvalidArgument": 1}.
func resume(to *servers) error {
	uploads := flag.Int("uploads", 30, "how many")
	size := flag.Int("size", 3<<20, "bytes of each")
	pause := flag.Float64("pause", 0, "`SECONDS` between the cut and the question")
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	told := map[string]int{}
	for range *uploads {
		content := make([]byte, *size)
		_, _ = rand.Read(content) // never fails
		digest := reapi.Digest(content)
		name := fmt.Sprintf("%s/uploads/%s/blobs/%s/%d", to.instance, uuid.NewString(), digest.Hash, digest.SizeBytes)
		sent, err := to.half(ctx, name, content)
		if err != nil {
			return err
		}
		time.Sleep(time.Duration(*pause * float64(time.Second)))
		cache, err := to.cache()
		if err != nil {
			return err
		}
		client := bspb.NewByteStreamClient(cache.Connection)
		answer, err := client.QueryWriteStatus(ctx, &bspb.QueryWriteStatusRequest{ResourceName: name})
		if status.Code(err) == codes.Unimplemented {
			answer, err = &bspb.QueryWriteStatusResponse{}, nil
		}
		if err == nil {
			err = send(ctx, client, name, content, int(answer.CommittedSize))
		}
		switch {
		case err != nil:
			told[status.Code(err).String()]++
		case answer.CommittedSize == 0:
			told["from the beginning"]++
		case answer.CommittedSize <= int64(sent):
			told["resumed"]++
		}
		_ = cache.Connection.Close() // its errors tell nothing
	}
	return json.NewEncoder(os.Stdout).Encode(told)
}

// half sends the first two thirds of an upload, and closes the connection. It returns the number of bytes.
func (s *servers) half(ctx context.Context, name string, content []byte) (int, error) {
	cache, err := s.cache()
	if err != nil {
		return 0, err
	}
	stream, err := bspb.NewByteStreamClient(cache.Connection).Write(ctx)
	if err != nil {
		return 0, err
	}
	end := len(content) * 2 / 3
	for offset := 0; offset < end; offset += chunk {
		next := min(offset+chunk, end)
		request := &bspb.WriteRequest{ResourceName: name, WriteOffset: int64(offset), Data: content[offset:next]}
		if err := stream.Send(request); err != nil {
			return 0, err
		}
	}
	time.Sleep(200 * time.Millisecond) // so that they arrive
	return end, cache.Connection.Close()
}

// send writes the rest of an upload.
func send(ctx context.Context, client bspb.ByteStreamClient, name string, content []byte, offset int) error {
	stream, err := client.Write(ctx)
	if err != nil {
		return err
	}
	for {
		next := min(offset+chunk, len(content))
		err := stream.Send(&bspb.WriteRequest{
			ResourceName: name, WriteOffset: int64(offset), FinishWrite: next == len(content), Data: content[offset:next],
		})
		if err != nil && err != io.EOF {
			return err
		}
		if err == io.EOF || next == len(content) { // CloseAndRecv then returns the reason
			_, err = stream.CloseAndRecv()
			return err
		}
		offset = next
	}
}
