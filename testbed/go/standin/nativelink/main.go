// Command nativelink is a STAND-IN for TraceMachina's NativeLink, for machines that cannot have its image.
//
// It reads the configuration file that is its only argument, refuses what the JSON Schema in NATIVELINK_SCHEMA (a file,
// optional) refuses, opens every configured port, makes the directories of filesystem stores, answers GET /status
// on listeners with the health service, and ends one second after SIGTERM, whatever it does. It caches and runs nothing.
package main

import (
	"bytes"
	"fmt"
	"log"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/titanous/json5"
)

type object = map[string]any

// servers are what is configured in `servers`, as far as this program has to know it.
type server struct {
	Name     string
	Listener struct {
		HTTP struct {
			SocketAddress string `json:"socket_address"`
			TLS           *struct {
				CertFile string `json:"cert_file"`
				KeyFile  string `json:"key_file"`
			}
		}
	}
	Services object
}

func read(path string) (any, []server, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, err
	}
	var whole any
	if err := json5.Unmarshal(text, &whole); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	var known struct{ Servers []server }
	if err := json5.Unmarshal(text, &known); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	if len(known.Servers) == 0 {
		return nil, nil, fmt.Errorf("%s: no servers", path)
	}
	return whole, known.Servers, nil
}

func validate(config any, schema string) error {
	text, err := os.ReadFile(schema)
	if err != nil {
		return err
	}
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		return fmt.Errorf("%s: %w", schema, err)
	}
	compiler := jsonschema.NewCompiler()
	if err := compiler.AddResource("schema.json", document); err != nil {
		return err
	}
	compiled, err := compiler.Compile("schema.json")
	if err != nil {
		return err
	}
	return compiled.Validate(config)
}

// makeDirectories makes what filesystem stores and workers keep their files in, wherever it is in the configuration.
func makeDirectories(config any) error {
	switch value := config.(type) {
	case []any:
		for _, item := range value {
			if err := makeDirectories(item); err != nil {
				return err
			}
		}
	case object:
		for key, item := range value {
			path, ok := item.(string)
			if ok && (key == "content_path" || key == "temp_path" || key == "work_directory") {
				if err := os.MkdirAll(os.ExpandEnv(path), 0o755); err != nil {
					return err
				}
			} else if err := makeDirectories(item); err != nil {
				return err
			}
		}
	}
	return nil
}

func serve(wanted server, failed chan<- error) {
	routes := http.NewServeMux()
	if _, healthy := wanted.Services["health"]; healthy {
		routes.HandleFunc("GET /status", func(answer http.ResponseWriter, _ *http.Request) {
			answer.Header().Set("Content-Type", "application/json")
			fmt.Fprintln(answer, "[]")
		})
	}
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	listener := http.Server{Addr: wanted.Listener.HTTP.SocketAddress, Handler: routes, Protocols: &protocols}
	log.Printf("stand-in: %s listens on %s", wanted.Name, listener.Addr)
	if tls := wanted.Listener.HTTP.TLS; tls != nil {
		failed <- listener.ListenAndServeTLS(tls.CertFile, tls.KeyFile)
		return
	}
	failed <- listener.ListenAndServe()
}

func run() error {
	if len(os.Args) != 2 {
		return fmt.Errorf("usage: %s CONFIGURATION", os.Args[0])
	}
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM, syscall.SIGINT)
	config, servers, err := read(os.Args[1])
	if err != nil {
		return err
	}
	if schema := os.Getenv("NATIVELINK_SCHEMA"); schema != "" {
		if err := validate(config, schema); err != nil {
			return fmt.Errorf("%s: %w", os.Args[1], err)
		}
	}
	if err := makeDirectories(config); err != nil {
		return err
	}
	failed := make(chan error)
	for _, wanted := range servers {
		go serve(wanted, failed)
	}
	select {
	case err := <-failed:
		return err
	case <-end:
		log.Print("stand-in: ends in one second")
		time.Sleep(time.Second)
		return nil
	}
}

func main() {
	log.Print("stand-in for NativeLink: it caches and runs nothing")
	if err := run(); err != nil {
		log.Fatal(err)
	}
}
