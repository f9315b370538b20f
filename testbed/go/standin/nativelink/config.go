package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/titanous/json5"
)

// config is the part of the configuration file that this program reads.
type config struct {
	Stores     []storeSpec
	Schedulers []struct {
		Name string
		schedulerSpec
	}
	Workers []struct{ Local *workerConfig }
	Servers []serverConfig
}

// storeSpec has a name, if it is one of the file's list, and one kind with its settings.
type storeSpec map[string]json.RawMessage

// schedulerSpec has one of the kinds set.
type schedulerSpec struct {
	Simple      *schedulerConfig
	CacheLookup *struct {
		AC        string `json:"ac_store"`
		Scheduler schedulerSpec
	} `json:"cache_lookup"`
}

type schedulerConfig struct {
	Properties          map[string]string `json:"supported_platform_properties"`
	WorkerTimeout       float64           `json:"worker_timeout_s"`
	ExecutingTimeout    float64           `json:"max_action_executing_timeout_s"`
	RetainCompleted     int64             `json:"retain_completed_for_s"`
	MaxJobRetries       int               `json:"max_job_retries"`
	FallbackMatch       *int64            `json:"fallback_match_interval_s"`
	ExperimentalBackend struct {
		Redis *struct {
			Store string `json:"redis_store"`
		}
	} `json:"experimental_backend"`
}

type workerConfig struct {
	Name     expanded
	Endpoint struct {
		URI expanded
		TLS *clientTLS `json:"tls_config"`
	} `json:"worker_api_endpoint"`
	CAS    string `json:"cas_fast_slow_store"`
	Upload struct {
		AC string `json:"ac_store"`
	} `json:"upload_action_result"`
	WorkDirectory expanded `json:"work_directory"`
	Slots         int      `json:"max_inflight_tasks"`
	// v1.3.2 names this setting without the unit, v1.6.6 with the unit.
	LongestOld   float64                              `json:"max_action_timeout"`
	Longest      float64                              `json:"max_action_timeout_s"`
	Precondition expanded                             `json:"experimental_precondition_script"`
	Entrypoint   expanded                             `json:"entrypoint"`
	Properties   map[string]struct{ Values []string } `json:"platform_properties"`
	Environment  map[string]struct{ Value *expanded } `json:"additional_environment"`
}

// clientTLS is the TLS of an endpoint.
type clientTLS struct {
	CA          expanded `json:"ca_file"`
	Certificate expanded `json:"cert_file"`
	Key         expanded `json:"key_file"`
}

type instance struct {
	Name      string `json:"instance_name"`
	CAS       string `json:"cas_store"`
	AC        string `json:"ac_store"`
	ReadOnly  bool   `json:"read_only"`
	Scheduler string
	Execution *struct{ Scheduler string } `json:"remote_execution"`
	// Compression lets clients send and ask for zstd.
	Compression bool `json:"remote_cache_compression"`
}

type serverConfig struct {
	Listener struct {
		HTTP struct {
			SocketAddress expanded `json:"socket_address"`
			TLS           *struct {
				CertFile  expanded `json:"cert_file"`
				KeyFile   expanded `json:"key_file"`
				ClientCA  expanded `json:"client_ca_file"`
				ClientCRL string   `json:"client_crl_file"`
			}
		}
	}
	Services services
}

type services struct {
	CAS          []instance
	AC           []instance
	ByteStream   []instance
	Capabilities []instance
	Execution    []instance
	WorkerAPI    *struct{ Scheduler string } `json:"worker_api"`
	Health       *struct{}
}

// expanded is a text in which $NAME and ${NAME} are replaced from the environment, and $$ by $.
type expanded string

func (e *expanded) UnmarshalJSON(text []byte) error {
	var plain string
	if err := json.Unmarshal(text, &plain); err != nil {
		return err
	}
	var missing error
	*e = expanded(os.Expand(plain, func(name string) string {
		value, there := os.LookupEnv(name)
		switch {
		case name == "$":
			return name
		case !there:
			missing = fmt.Errorf("error looking key '%s' up: environment variable not found", name)
		}
		return value
	}))
	return missing
}

// read reads a configuration, which has to be valid by the JSON Schema in the file that NATIVELINK_SCHEMA names, or else
// in the file beside this program.
func read(path string) (found config, err error) {
	program, err := os.Executable()
	if err != nil {
		return found, err
	}
	by, err := jsonschema.NewCompiler().Compile(cmp.Or(os.Getenv("NATIVELINK_SCHEMA"), program+".schema.json"))
	if err != nil {
		return found, fmt.Errorf("no JSON Schema to check the configuration with: %w", err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return found, err
	}
	var whole any
	if err = json5.Unmarshal(text, &whole); err == nil {
		err = by.Validate(whole)
	}
	var plain []byte
	if err == nil {
		plain, err = json.Marshal(whole)
	}
	if err == nil {
		err = json.Unmarshal(plain, &found)
	}
	return found, err
}
