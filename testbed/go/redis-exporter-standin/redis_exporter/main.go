// A stand-in for redis_exporter, whose Go module is not to be had: it takes the arguments and the environment that
// our templates give, and answers /metrics and /health as redis_exporter v1.87.0 does, with the metrics about a Lua
// script and none about Redis itself.
package main

import (
	"cmp"
	"flag"
	"log"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

var (
	up     = prometheus.NewDesc("redis_up", "Information about the Redis instance", nil, nil)
	failed = prometheus.NewDesc("redis_exporter_last_scrape_error", "The last scrape error status.", []string{"err"}, nil)
	// 0 if a script failed, 1 if it gave values, 2 if it gave none.
	results = prometheus.NewDesc(
		"redis_script_result", "Result of the collect script evaluation", []string{"filename"}, nil)
	values = prometheus.NewDesc(
		"redis_script_values", "Values returned by the collect script", []string{"key", "filename"}, nil)
)

type exporter struct {
	lock     sync.Mutex // one scrape at a time
	address  string
	password string
	names    []string
	scripts  map[string]string
}

func (e *exporter) Describe(described chan<- *prometheus.Desc) {
	prometheus.DescribeByCollect(e, described)
}

func (e *exporter) Collect(found chan<- prometheus.Metric) {
	e.lock.Lock()
	defer e.lock.Unlock()
	gauge := func(about *prometheus.Desc, value float64, labels ...string) {
		found <- prometheus.MustNewConstMetric(about, prometheus.GaugeValue, value, labels...)
	}
	if err := e.scrape(gauge); err != nil {
		gauge(failed, 1, err.Error())
		gauge(up, 0)
		return
	}
	gauge(failed, 0, "")
	gauge(up, 1)
}

// scrape stops at the first error: later scripts then have no metrics, nor has what follows a value that is no number.
func (e *exporter) scrape(gauge func(*prometheus.Desc, float64, ...string)) error {
	limit := 15 * time.Second
	connection, err := redis.DialURL(
		e.address,
		redis.DialPassword(e.password),
		redis.DialConnectTimeout(limit), redis.DialReadTimeout(limit), redis.DialWriteTimeout(limit),
	)
	if err != nil {
		log.Printf("Couldn't connect to redis instance: %v", err)
		return err
	}
	defer connection.Close()
	for _, name := range e.names {
		if err := run(connection, name, e.scripts[name], gauge); err != nil {
			log.Printf("LuaScript error: %v", err)
			gauge(results, 0, name)
			return err
		}
	}
	return nil
}

func run(
	connection redis.Conn, name, script string, gauge func(*prometheus.Desc, float64, ...string),
) error {
	answer, err := redis.StringMap(connection.Do("EVAL", script, 0, 0))
	if err != nil {
		return err
	}
	for key, text := range answer {
		value, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return err
		}
		gauge(values, value, key, name)
	}
	if len(answer) == 0 {
		gauge(results, 2, name)
		return nil
	}
	gauge(results, 1, name)
	return nil
}

func main() {
	address := flag.String("redis.addr", cmp.Or(os.Getenv("REDIS_ADDR"), "redis://localhost:6379"), "")
	password := flag.String("redis.password", os.Getenv("REDIS_PASSWORD"), "")
	paths := flag.String("script", os.Getenv("REDIS_EXPORTER_SCRIPT"), "comma-separated paths")
	listen := flag.String(
		"web.listen-address", cmp.Or(os.Getenv("REDIS_EXPORTER_WEB_LISTEN_ADDRESS"), ":9121"), "")
	flag.Bool("redis-only-metrics", false, "as it is anyway")
	flag.Bool("exclude-latency-histogram-metrics", false, "as it is anyway")
	flag.Parse()

	e := &exporter{address: *address, password: *password, scripts: map[string]string{}}
	if !strings.Contains(e.address, "://") {
		e.address = "redis://" + e.address
	}
	for _, path := range strings.FieldsFunc(*paths, func(letter rune) bool { return letter == ',' }) {
		content, err := os.ReadFile(path)
		if err != nil {
			log.Fatalf("Error loading script files: %v", err)
		}
		e.names = append(e.names, path)
		e.scripts[path] = string(content)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(e)
	http.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError}))
	http.HandleFunc("/health", func(writer http.ResponseWriter, _ *http.Request) {
		_, _ = writer.Write([]byte("ok"))
	})
	log.Fatal(http.ListenAndServe(*listen, nil))
}
