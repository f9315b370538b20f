package main

import (
	"context"
	"encoding/json"
	"flag"
	"io"
	"os"
	"time"

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
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	told := map[string]int{}
	for range *uploads {
		content := random(3 * chunk)
		name := upload(reapi.Cache{Instance: to.instance}, reapi.Digest(content))
		if err := to.begin(ctx, name, content[:2*chunk]); err != nil {
			return err
		}
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
		default:
			told["resumed"]++
		}
		_ = cache.Connection.Close() // its errors tell nothing
	}
	return json.NewEncoder(os.Stdout).Encode(told)
}

// begin sends the first part of an upload, and closes the connection.
func (s *servers) begin(ctx context.Context, name string, part []byte) error {
	cache, err := s.cache()
	if err != nil {
		return err
	}
	stream, err := bspb.NewByteStreamClient(cache.Connection).Write(ctx)
	if err != nil {
		return err
	}
	for offset := 0; offset < len(part); offset += chunk {
		next := min(offset+chunk, len(part))
		request := &bspb.WriteRequest{ResourceName: name, WriteOffset: int64(offset), Data: part[offset:next]}
		if err := stream.Send(request); err != nil {
			return err
		}
	}
	time.Sleep(200 * time.Millisecond) // so that it arrives
	return cache.Connection.Close()
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
