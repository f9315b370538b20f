package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"strconv"
	"time"

	"github.com/redis/rueidis"
)

// byState is the name that v1.6.6 gives to the index of the actions.
const byState = "aa__state_sort_key_3e762c15"

// deadStarts is the key in Redis that counts the starts for NATIVELINK_STANDIN_DEAD_STARTS.
const deadStarts = "standin_starts"

type redisConfig struct {
	Addresses []expanded
	Mode      string
	Channel   string `json:"experimental_pub_sub_channel"`
	Retry     struct {
		Most int `json:"max_retries"`
	}
}

// backend is a mirror of the queue in Redis, for those who read it there: the hash aa_ID describes an action. The
// scheduler itself has its queue in memory, but waits for Redis where the original does, and loses what the original
// loses while Redis is away.
type backend struct {
	store
	client  rueidis.Client
	channel string
	// patience is how long a command waits for a Redis that is away. It is the time that the configured retries (1 by
	// default) take, which come after 0.1 s, 0.2 s and so on.
	patience time.Duration
	// dead is set if the matching loop ended before it began.
	dead  bool
	again chan struct{} // asks for a new subscription
}

// key returns the name of the hash that describes an action.
func (wish *action) key() string { return "aa_" + wish.ID }

// connect opens a redis_store. As in the original, connect fails while Redis is away, and the process ends.
func connect(settings redisConfig) (*backend, error) {
	if len(settings.Addresses) != 1 || settings.Mode != "" && settings.Mode != "standard" {
		return nil, errors.New("the stand-in takes one address and the mode standard in a redis_store")
	}
	where, err := url.Parse(string(settings.Addresses[0]))
	if err != nil {
		return nil, errors.New("the address of Redis is not a URL") // the error itself would show the password
	}
	options, err := rueidis.ParseURL(where.String())
	if err != nil {
		return nil, errors.New("the address of Redis is not a URL")
	}
	// All commands share one connection, which looks like the original's in CLIENT LIST.
	options.ForceSingleClient, options.PipelineMultiplex, options.DisableCache, options.DisableRetry = true, -1, true, true
	options.ClientSetInfo = []string{"redis-rs", "1.0.0"}
	options.Dialer = net.Dialer{Timeout: time.Second, KeepAlive: 10 * time.Second}
	client, err := rueidis.NewClient(options)
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", where.Redacted(), err)
	}
	patience := 100 * time.Millisecond * (1<<min(max(settings.Retry.Most, 1), 20) - 1)
	return &backend{client: client, channel: settings.Channel, patience: patience, again: make(chan struct{}, 1)}, nil
}

// begin removes the actions of an earlier start, and decides whether the matching loop of this start is dead. With
// NATIVELINK_STANDIN_DEAD_STARTS=2 the first two starts on this Redis are dead.
func (b *backend) begin() error {
	left, err := b.do(b.client.B().Keys().Pattern("aa_*").Build()).AsStrSlice()
	if err == nil && len(left) > 0 {
		err = b.do(b.client.B().Del().Key(left...).Build()).Error()
	}
	wanted := os.Getenv("NATIVELINK_STANDIN_DEAD_STARTS")
	if err != nil || wanted == "" {
		return err
	}
	most, err := strconv.ParseInt(wanted, 10, 64)
	if err != nil {
		return fmt.Errorf("NATIVELINK_STANDIN_DEAD_STARTS: %w", err)
	}
	starts, err := b.do(b.client.B().Incr().Key(deadStarts).Build()).AsInt64()
	b.dead = starts <= most
	return err
}

// do runs a command, and repeats it for as long as the configuration lets commands wait for a Redis that is away.
func (b *backend) do(command rueidis.Completed) rueidis.RedisResult {
	command = command.Pin()
	for deadline := time.Now().Add(b.patience); ; time.Sleep(100 * time.Millisecond) {
		result := b.within(2*time.Second, command)
		if result.NonRedisError() == nil || time.Now().After(deadline) {
			return result
		}
	}
}

func (b *backend) within(limit time.Duration, command rueidis.Completed) rueidis.RedisResult {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	return b.client.Do(ctx, command)
}

// ping is the health check. Without an answer in time, ping has the scheduler subscribe again, and tries once more.
func (b *backend) ping() error {
	err := b.within(4*time.Second, b.client.B().Ping().Build()).Error()
	if errors.Is(err, context.DeadlineExceeded) {
		select {
		case b.again <- struct{}{}:
		default:
		}
		err = b.within(4*time.Second, b.client.B().Ping().Build()).Error()
	}
	return err
}

// readQueue asks for the queued actions, and makes the index if there is none. CLIENT LIST shows that query of a
// matching loop that lives. The answer is that of the queue in memory.
func (b *backend) readQueue() error {
	ask := func() rueidis.RedisResult {
		return b.do(b.client.B().Arbitrary("FT.AGGREGATE").Args(byState, "@state:{ queued }").Build())
	}
	asked := ask()
	if asked.Error() == nil || asked.NonRedisError() != nil {
		return asked.Error()
	}
	created := []string{byState, "ON", "HASH", "TEMPORARY", "86400", "PREFIX", "1", "aa_", "SCHEMA", "state", "TAG"}
	return errors.Join(b.do(b.client.B().Arbitrary("FT.CREATE").Args(created...).Build()).Error(), ask().Error())
}

// listen subscribes to the configured channel. As in v1.6.6 the subscription ends with the connection, until a health
// check asks for another one.
func (b *backend) listen() {
	for {
		err := b.client.Receive(context.Background(), b.client.B().Psubscribe().Pattern(b.channel).Build(), func(rueidis.PubSubMessage) {})
		slog.Error("The subscription ended", "err", err)
		<-b.again
	}
}

// write writes an action in a stage. Redis keeps a completed one for some seconds, or for ever if they are 0.
func (b *backend) write(wish *action, stage string, retain int64) error {
	var told struct {
		Info struct {
			Properties map[string]string `json:"platform_properties"`
		} `json:"action_info"`
	}
	told.Info.Properties = wish.Properties
	data, err := json.Marshal(told)
	if err != nil {
		return err
	}
	fields := b.client.B().Hset().Key(wish.key()).FieldValue().FieldValue("state", stage).FieldValue("data", string(data))
	if err := b.do(fields.Build()).Error(); err != nil || stage != completed || retain == 0 {
		return err
	}
	return b.do(b.client.B().Expire().Key(wish.key()).Seconds(retain).Build()).Error()
}

// remove deletes an action from Redis.
func (b *backend) remove(wish *action) error {
	return b.do(b.client.B().Del().Key(wish.key()).Build()).Error()
}
