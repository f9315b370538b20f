package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/titanous/json5"
)

// config is the configuration file as far as this program has to know it.
type config struct {
	Stores     []storeSpec
	Schedulers []struct {
		Name   string
		Simple *schedulerConfig
	}
	Workers []struct{ Local *workerConfig }
	Servers []serverConfig
}

// storeSpec has a name, if it is one of the file's list, and one kind with its settings.
type storeSpec map[string]json.RawMessage

type schedulerConfig struct {
	Properties          map[string]string `json:"supported_platform_properties"`
	WorkerTimeout       float64           `json:"worker_timeout_s"`
	ExecutingTimeout    float64           `json:"max_action_executing_timeout_s"`
	MaxJobRetries       *int              `json:"max_job_retries"`
	ExperimentalBackend struct {
		Redis *struct {
			Store string `json:"redis_store"`
		}
	} `json:"experimental_backend"`
}

type workerConfig struct {
	Name     string
	Endpoint struct{ URI string } `json:"worker_api_endpoint"`
	CAS      string               `json:"cas_fast_slow_store"`
	Upload   struct {
		AC string `json:"ac_store"`
	} `json:"upload_action_result"`
	WorkDirectory string `json:"work_directory"`
	Slots         int    `json:"max_inflight_tasks"`
	// In v1.3.2 without the unit, in v1.6.6 with it.
	LongestOld   float64                              `json:"max_action_timeout"`
	Longest      float64                              `json:"max_action_timeout_s"`
	Precondition string                               `json:"experimental_precondition_script"`
	Properties   map[string]struct{ Values []string } `json:"platform_properties"`
	Environment  map[string]struct{ Value *string }   `json:"additional_environment"`
}

type instance struct {
	Name      string `json:"instance_name"`
	CAS       string `json:"cas_store"`
	AC        string `json:"ac_store"`
	ReadOnly  bool   `json:"read_only"`
	Scheduler string
	Execution *struct{ Scheduler string } `json:"remote_execution"`
}

type serverConfig struct {
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
	Services struct {
		CAS          []instance
		AC           []instance
		ByteStream   []instance
		Capabilities []instance
		Execution    []instance
		WorkerAPI    *struct{ Scheduler string } `json:"worker_api"`
		Health       *struct{}
	}
}

// read reads a configuration, which has to be valid by the JSON Schema in the file `schema`, if that is not "".
func read(path, schema string) (config, error) {
	var found config
	text, err := os.ReadFile(path)
	if err != nil {
		return found, err
	}
	var whole any
	if err := json5.Unmarshal(text, &whole); err != nil {
		return found, fmt.Errorf("%s: %w", path, err)
	}
	if schema != "" {
		if err := validate(whole, schema); err != nil {
			return found, fmt.Errorf("%s: %w", path, err)
		}
	}
	plain, err := json.Marshal(whole)
	if err == nil {
		err = json.Unmarshal(plain, &found)
	}
	if err == nil && len(found.Servers) == 0 {
		err = fmt.Errorf("no servers")
	}
	if err != nil {
		return found, fmt.Errorf("%s: %w", path, err)
	}
	return found, nil
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
