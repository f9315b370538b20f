package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"
)

// logs is a handler for log/slog that writes lines as NativeLink does: JSON with NL_LOG=json, else text.
type logs struct {
	mutex  *sync.Mutex
	out    io.Writer
	json   bool
	least  slog.Level
	runner slog.Level
}

// runner is the module of the original that logs the arguments of actions. RUST_LOG can set its level.
const runner = "nativelink_worker::running_actions_manager"

func newLogs(format, filter string) logs {
	least := level(filter, "", slog.LevelInfo)
	return logs{&sync.Mutex{}, os.Stdout, format == "json", least, level(filter, runner+"=", least)}
}

// level returns the level that RUST_LOG sets after a prefix. For "warn,hyper=off" and no prefix it is "warn".
func level(filter, prefix string, otherwise slog.Level) slog.Level {
	for directive := range strings.SplitSeq(filter, ",") {
		name, found := strings.CutPrefix(strings.TrimSpace(directive), prefix)
		if !found {
			continue
		}
		switch strings.ToLower(name) {
		case "trace", "debug":
			return slog.LevelDebug
		case "warn":
			return slog.LevelWarn
		case "error":
			return slog.LevelError
		case "off":
			return slog.LevelError + 1
		case "info":
			return slog.LevelInfo
		}
	}
	return otherwise
}

func (l logs) Enabled(_ context.Context, of slog.Level) bool { return of >= l.least }
func (l logs) WithAttrs([]slog.Attr) slog.Handler            { return l }
func (l logs) WithGroup(string) slog.Handler                 { return l }

func (l logs) Handle(_ context.Context, record slog.Record) error {
	when := record.Time.UTC().Format("2006-01-02T15:04:05.000000Z")
	fields := map[string]any{"message": record.Message}
	text := fmt.Sprintf("%s %5s %s", when, record.Level, record.Message)
	target := "nativelink"
	record.Attrs(func(field slog.Attr) bool {
		if field.Key == "target" {
			target = field.Value.String()
			return true
		}
		value := field.Value.Any()
		switch typed := value.(type) {
		case error:
			value = typed.Error()
		case time.Duration:
			value = typed.Seconds()
		}
		fields[field.Key] = value
		text += fmt.Sprintf(" %s=%v", field.Key, value)
		return true
	})
	if target == runner && record.Level < l.runner {
		return nil
	}
	if l.json {
		line, err := json.Marshal(map[string]any{
			"timestamp": when, "level": record.Level.String(), "fields": fields, "target": target,
		})
		if err != nil {
			return err
		}
		text = string(line)
	}
	l.mutex.Lock()
	defer l.mutex.Unlock()
	_, err := fmt.Fprintln(l.out, text)
	return err
}
