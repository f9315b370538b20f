package main

import (
	"bytes"
	"cmp"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"testbed/standin/reapi"
)

// abuse does to an edge what a broken or hostile client does, over many connections, and prints what became of them:
// {"opened": 50, "closed": 50, "first": 5.1, "last": 5.3}, the seconds until the edge ended the first and the last one.
func abuse(to *servers) error {
	kind := flag.String("kind", "connections", "connections, slow, idle, resets or headers")
	connections := flag.Int("connections", 50, "how many")
	streams := flag.Int("streams", 100, "calls of each")
	seconds := flag.Float64("seconds", 30, "how long to watch them")
	flag.Parse()
	settings, err := reapi.TLS(to.authority, to.certificate, to.key)
	if err != nil {
		return err
	}
	_, address, _ := strings.Cut(to.cas, "://")
	host, _, _ := net.SplitHostPort(address)
	settings.ServerName, settings.NextProtos = host, []string{"h2"}
	do := map[string]func(*attacker) error{
		"connections": func(a *attacker) error { return a.settings() },
		"slow":        (*attacker).slow,
		"idle":        func(a *attacker) error { return a.calls(*streams, false) },
		"resets":      func(a *attacker) error { return a.calls(*streams, true) },
		"headers":     (*attacker).giant,
	}[*kind]
	if do == nil {
		return fmt.Errorf("--kind=%s is not known", *kind)
	}
	var group sync.WaitGroup
	var lock sync.Mutex
	opened, ended := 0, []float64{}
	for range *connections {
		group.Go(func() {
			began := time.Now()
			raw, err := net.DialTimeout("tcp", cmp.Or(to.via, address), 10*time.Second)
			if err != nil {
				return
			}
			defer raw.Close() //nolint:errcheck // it is closed already
			secure := tls.Client(raw, settings)
			_ = raw.SetDeadline(began.Add(time.Duration(*seconds * float64(time.Second))))
			if secure.Handshake() != nil {
				return
			}
			a := &attacker{connection: secure, framer: http2.NewFramer(secure, secure), host: host}
			lock.Lock()
			opened++
			lock.Unlock()
			go func() { _ = do(a) }() // the edge ends it
			if !a.left(*kind == "idle", *streams) {
				return
			}
			lock.Lock()
			ended = append(ended, time.Since(began).Seconds())
			lock.Unlock()
		})
	}
	group.Wait()
	told := map[string]any{"opened": opened, "closed": len(ended)}
	if len(ended) > 0 {
		told["first"], told["last"] = slices.Min(ended), slices.Max(ended)
	}
	return json.NewEncoder(os.Stdout).Encode(told)
}

type attacker struct {
	connection net.Conn
	framer     *http2.Framer
	host       string
}

// left waits until the edge has closed the connection, or ended all calls on it. It is false if the time is over.
func (a *attacker) left(calls bool, streams int) bool {
	for ended := 0; ; {
		frame, err := a.framer.ReadFrame()
		if err != nil {
			return !errors.Is(err, os.ErrDeadlineExceeded)
		}
		head := frame.Header()
		if calls && (head.Type == http2.FrameRSTStream || head.Flags.Has(http2.FlagHeadersEndStream) && head.Type == http2.FrameHeaders) {
			if ended++; ended == streams {
				return true
			}
		}
	}
}

func (a *attacker) settings() error {
	if _, err := a.connection.Write([]byte(http2.ClientPreface)); err != nil {
		return err
	}
	return a.framer.WriteSettings()
}

// slow sends a byte of its preface every second.
func (a *attacker) slow() error {
	for _, each := range []byte(http2.ClientPreface) {
		if _, err := a.connection.Write([]byte{each}); err != nil {
			return err
		}
		time.Sleep(time.Second)
	}
	return nil
}

func (a *attacker) headers(more ...string) []byte {
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	fields := []string{
		":method", "POST", ":scheme", "https", ":authority", a.host, ":path", "/google.bytestream.ByteStream/Write",
		"content-type", "application/grpc", "te", "trailers",
	}
	fields = append(fields, more...)
	for index := 0; index < len(fields); index += 2 {
		_ = encoder.WriteField(hpack.HeaderField{Name: fields[index], Value: fields[index+1]}) // a buffer never fails
	}
	return block.Bytes()
}

// calls begins uploads that never send anything, and ends them at once if asked to.
func (a *attacker) calls(streams int, reset bool) error {
	if err := a.settings(); err != nil {
		return err
	}
	for index := range streams {
		id := uint32(2*index + 1)
		block := a.headers() // the encoder of each begins anew, without a table
		err := a.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block, EndHeaders: true})
		if err == nil && reset {
			err = a.framer.WriteRSTStream(id, http2.ErrCodeCancel)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// giant sends a header of a megabyte.
func (a *attacker) giant() error {
	if err := a.settings(); err != nil {
		return err
	}
	block := a.headers("x-giant", strings.Repeat("x", 1<<20))
	for first := true; len(block) > 0; first = false {
		part := block[:min(len(block), 16000)]
		block = block[len(part):]
		var err error
		if first {
			err = a.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: part})
		} else {
			err = a.framer.WriteContinuation(1, len(block) == 0, part)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
