package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"google.golang.org/grpc"

	"testbed/standin/reapi"
)

// transfer writes files to a CAS and reads them again, and prints what its connection carried, and how long that took:
// {"write": {"bytes": 4711, "seconds": 0.2}, "read": …}. With --chunked it also reads what the files become by a byte
// that is put into the middle of each, of which it has the chunks that did not change: {"changed": …}.
func transfer(to *servers) error {
	compressed := flag.Bool("compressed", false, "as zstd")
	chunked := flag.Bool("chunked", false, "also read changed files, by chunks")
	rate := flag.Float64("rate", 0, "`BYTES` that the connection carries in a second; 0 for as many as it can")
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	line := &wire{rate: *rate}
	connection, err := to.dial(to.cas, grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
		found, err := new(net.Dialer).DialContext(ctx, "tcp", cmp.Or(to.via, address))
		return &metered{found, line}, err
	}))
	if err != nil {
		return err
	}
	cache := reapi.NewCache(connection, to.instance)
	if *compressed {
		cache.Compressor = repb.Compressor_ZSTD
	}
	var files, changed [][]byte
	for _, path := range flag.Args() {
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		content = append(random(16), content...) // so that no CAS has it
		files = append(files, content)
		changed = append(changed, slices.Insert(slices.Clone(content), len(content)/2, 'x'))
	}
	told := map[string]any{}
	measure := func(name string, do func(content []byte) error, of [][]byte) error {
		before, began := line.carried(), time.Now()
		err := atOnce(8, len(of), func(index int) error { return do(of[index]) })
		told[name] = map[string]any{"bytes": line.carried() - before, "seconds": time.Since(began).Seconds()}
		return err
	}
	put := func(content []byte) error { return write(ctx, cache, reapi.Digest(content), content) }
	get := func(content []byte) error {
		found, err := read(ctx, cache, reapi.Digest(content))
		if err == nil && !bytes.Equal(found, content) {
			err = fmt.Errorf("something else came back")
		}
		return err
	}
	if err := measure("write", put, files); err != nil {
		return err
	}
	if err := measure("read", get, files); err != nil {
		return err
	}
	if *chunked {
		has := map[string][]byte{}
		// parts returns the digests of a blob's chunks.
		parts := func(content []byte) ([]*repb.Digest, error) {
			answer, err := cache.Client.SplitBlob(
				ctx, &repb.SplitBlobRequest{InstanceName: to.instance, BlobDigest: reapi.Digest(content)})
			return answer.GetChunkDigests(), err
		}
		for index, content := range files {
			digests, err := parts(content)
			if err != nil {
				return err
			}
			for _, digest := range digests {
				has[digest.Hash], content = content[:digest.SizeBytes], content[digest.SizeBytes:]
			}
			if err := put(changed[index]); err != nil {
				return err
			}
		}
		err := measure("changed", func(content []byte) error {
			digests, err := parts(content)
			var whole []byte
			for _, digest := range digests {
				part := has[digest.Hash]
				if part == nil && err == nil {
					part, err = read(ctx, cache, digest)
				}
				whole = append(whole, part...)
			}
			if err == nil && !bytes.Equal(whole, content) {
				err = fmt.Errorf("the chunks are not the file")
			}
			return err
		}, changed)
		if err != nil {
			return err
		}
	}
	return json.NewEncoder(os.Stdout).Encode(told)
}

// wire counts the bytes in both directions of connections, and carries so many of them in a second.
type wire struct {
	sync.Mutex
	rate  float64
	bytes int
	free  time.Time // when it has carried all bytes so far
}

func (w *wire) carried() int {
	w.Lock()
	defer w.Unlock()
	return w.bytes
}

func (w *wire) carry(size int) {
	w.Lock()
	defer w.Unlock()
	w.bytes += size
	if w.rate > 0 {
		if now := time.Now(); w.free.Before(now) {
			w.free = now
		}
		w.free = w.free.Add(time.Duration(float64(size) / w.rate * float64(time.Second)))
		time.Sleep(time.Until(w.free))
	}
}

// metered is a connection on a wire.
type metered struct {
	net.Conn
	on *wire
}

func (m *metered) Read(content []byte) (int, error) {
	size, err := m.Conn.Read(content)
	m.on.carry(size)
	return size, err
}

func (m *metered) Write(content []byte) (int, error) {
	m.on.carry(len(content))
	return m.Conn.Write(content)
}
