package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"cloud.google.com/go/longrunning/autogen/longrunningpb"
	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"github.com/redis/rueidis"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
)

// The indexes have the names that v1.6.6 gives them.
const (
	byState  = "aa__state_sort_key_3e762c15"
	byAction = "aa__unique_qualifier__3e762c15"
)

// A client's name leads to its action for namedFor. Redis is told of each client that waits once in keptAlive.
const (
	namedFor  = 24 * time.Hour
	keptAlive = 10 * time.Second
)

// deadStarts is the key in Redis that counts the starts for NATIVELINK_STANDIN_DEAD_STARTS.
const deadStarts = "standin_starts"

var errStale = errors.New("the version did not match")

type redisConfig struct {
	Addresses []expanded
	Mode      string
	Channel   string `json:"experimental_pub_sub_channel"`
	Retry     struct {
		Most int `json:"max_retries"`
	}
}

// backend is a queue in Redis, which all schedulers on that Redis share. The hash aa_ID describes an action, cid_NAME
// leads from a client's operation to its action, and ck_ID says when a client was last seen to wait for an action. As
// in the original, ck_ID never expires.
type backend struct {
	store
	client  rueidis.Client
	channel string
	// patience is how long a command waits for a Redis that is away. It is the time that the configured retries (1 by
	// default) take, which come after 0.1 s, 0.2 s and so on.
	patience time.Duration
	// dead is set if the matching loop ended before it began.
	dead       bool
	failedAt   atomic.Int64 // in nanoseconds
	subscribed atomic.Bool
	again      chan struct{} // asks for a new subscription
}

// record is the part of the field "data" of an action's hash that the stand-in or a reader of the queue needs.
type record struct {
	Info struct {
		Properties map[string]string `json:"platform_properties"`
		Priority   int32             `json:"priority"`
		Inserted   instant           `json:"insert_timestamp"`
		Qualifier  struct {
			Cacheable   *qualifier `json:",omitempty"`
			Uncacheable *qualifier `json:",omitempty"`
		} `json:"unique_qualifier"`
	} `json:"action_info"`
	Operation struct{ Uuid string } `json:"operation_id"` //nolint:staticcheck // the original's name
	SortKey   uint64                `json:"sort_key"`
	// Updated is when the stage or the worker last changed. KeptAlive is when a client was last seen before the write.
	Updated   instant `json:"last_worker_updated_timestamp"`
	KeptAlive instant `json:"last_client_keepalive_timestamp"`
	Worker    *string `json:"worker_id"`
	State     struct {
		Stage   any     `json:"stage"`
		Changed instant `json:"last_transition_timestamp"`
		Digest  string  `json:"action_digest"`
	} `json:"state"`
	Attempts int `json:"attempts"`
}

type qualifier struct {
	Instance string `json:"instance_name"`
	Function string `json:"digest_function"`
	Digest   string `json:"digest"`
}

type instant struct {
	Seconds int64 `json:"secs_since_epoch"`
	Nanos   int   `json:"nanos_since_epoch"`
}

func at(when time.Time) instant     { return instant{when.Unix(), when.Nanosecond()} }
func (i instant) time() time.Time   { return time.Unix(i.Seconds, int64(i.Nanos)) }
func key(name, id string) string    { return name + "_" + id }
func stageName(stage string) string { return strings.ToUpper(stage[:1]) + stage[1:] }

// update writes an action if its version is still the known one. ARGV has it, a time to live or 0, and fields.
var update = rueidis.NewLuaScript(`
if (tonumber(redis.call('HGET', KEYS[1], 'version')) or 0) ~= tonumber(ARGV[1]) then return 0 end
redis.call('HSET', KEYS[1], 'version', ARGV[1] + 1, unpack(ARGV, 3))
if ARGV[2] ~= '0' then redis.call('EXPIRE', KEYS[1], ARGV[2]) end
return 1`)

// connect opens a redis_store. As in the original, connect fails while Redis is away, and the process ends.
func connect(settings redisConfig) (*backend, error) {
	switch {
	case len(settings.Addresses) == 0:
		return nil, errors.New("No addresses were specified in redis store configuration.") //nolint:staticcheck // the original's words
	case len(settings.Addresses) > 1:
		return nil, errors.New("Connecting directly to multiple redis nodes in a cluster is currently unsupported.") //nolint:staticcheck // the same
	case settings.Mode != "" && settings.Mode != "standard":
		return nil, fmt.Errorf("the stand-in has no redis_store of mode %s", settings.Mode)
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
		return nil, fmt.Errorf("While connecting to redis with url: %s: %w", where.Redacted(), err) //nolint:staticcheck // the original's words
	}
	patience := 100 * time.Millisecond * (1<<min(max(settings.Retry.Most, 1), 20) - 1)
	return &backend{client: client, channel: settings.Channel, patience: patience, again: make(chan struct{}, 1)}, nil
}

// begin decides whether the matching loop of this start is dead. With NATIVELINK_STANDIN_DEAD_STARTS=0.5 that has a
// probability of 0.5. With 2 (without a point) the first two starts on this Redis are dead.
func (b *backend) begin() error {
	wanted := os.Getenv("NATIVELINK_STANDIN_DEAD_STARTS")
	if wanted == "" {
		return nil
	}
	number, err := strconv.ParseFloat(wanted, 64)
	if err != nil {
		return fmt.Errorf("NATIVELINK_STANDIN_DEAD_STARTS: %w", err)
	}
	if strings.Contains(wanted, ".") {
		b.dead = rand.Float64() < number
		return nil
	}
	starts, err := b.do(b.client.B().Incr().Key(deadStarts).Build()).AsInt64()
	b.dead = starts <= int64(number)
	return err
}

// do runs a command, and repeats it for as long as the configuration lets commands wait for a Redis that is away.
func (b *backend) do(command rueidis.Completed) rueidis.RedisResult {
	command = command.Pin()
	return b.patiently(func() rueidis.RedisResult { return b.within(2*time.Second, command) })
}

func (b *backend) patiently(run func() rueidis.RedisResult) rueidis.RedisResult {
	for deadline := time.Now().Add(b.patience); ; time.Sleep(100 * time.Millisecond) {
		result := run()
		if result.NonRedisError() == nil || time.Now().After(deadline) {
			return result
		}
	}
}

func (b *backend) within(limit time.Duration, command rueidis.Completed) rueidis.RedisResult {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	result := b.client.Do(ctx, command)
	b.judge(result.NonRedisError())
	return result
}

func (b *backend) judge(err error) {
	if err != nil {
		b.failedAt.Store(time.Now().UnixNano())
	}
}

// away reports whether a command has just failed, so that another command need not wait as long.
func (b *backend) away() bool {
	return time.Since(time.Unix(0, b.failedAt.Load())) < 300*time.Millisecond
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

// follow listens to the changes of other schedulers and, unless the matching loop is dead, has queued actions matched.
func (b *backend) follow(s *scheduler) {
	go b.listen(s)
	if b.dead {
		return
	}
	every := int64(5)
	switch {
	case s.old: // v1.3.2 matches only when it is woken
		every = 0
	case s.config.FallbackMatch != nil:
		every = *s.config.FallbackMatch
	}
	for {
		var wait <-chan time.Time
		began := time.Now()
		waiting, err := b.search(byState, "@state:{ queued }", "sort_key")
		if err == nil {
			b.readEach(waiting)
			s.mutex.Lock()
			s.matchNow(b.matchable(s, waiting))
			s.mutex.Unlock()
			if every > 0 {
				wait = time.After(time.Duration(every) * time.Second)
			}
		} else {
			slog.Error("Error calling ft.aggregate", "e", err, "index", byState)
			wait = time.After(100 * time.Millisecond)
		}
		passed(began, err)
		select {
		case <-s.wake:
			time.Sleep(time.Millisecond)
		case <-wait:
		}
	}
}

// readEach reads the queued actions one by one. It does so only because the original does: CLIENT LIST shows these
// reads for a scheduler that has a queue.
func (b *backend) readEach(ids []string) {
	commands := []rueidis.Completed{}
	for _, id := range ids {
		commands = append(commands, b.client.B().Hmget().Key(key("aa", id)).Field("version", "data").Build())
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	b.client.DoMulti(ctx, commands...)
}

// listen receives the names of keys that are written. As in v1.6.6 the subscription ends with the connection. From then
// on clients learn of a result only when the scheduler reads their action, every 10 seconds.
func (b *backend) listen(s *scheduler) {
	for {
		b.subscribed.Store(true)
		s.mutex.Lock()
		for _, wish := range s.actions {
			b.refresh(wish)
		}
		s.mutex.Unlock()
		err := b.client.Receive(context.Background(), b.client.B().Psubscribe().Pattern(b.channel).Build(),
			func(message rueidis.PubSubMessage) {
				// A goroutine does this, because no command can be answered before this function has returned.
				go func() {
					s.mutex.Lock()
					defer s.mutex.Unlock()
					if wish := s.actions[strings.TrimPrefix(message.Message, "aa_")]; wish != nil {
						b.refresh(wish)
					}
					s.match()
				}()
			})
		b.subscribed.Store(false)
		slog.Error("The subscription ended", "err", err)
		<-b.again
	}
}

// search returns the IDs of the actions that a query finds, and makes the index if there is none.
func (b *backend) search(index, query, sortedBy string) ([]string, error) {
	arguments := []string{index, query, "TIMEOUT", "10000", "LOAD", "2", "data", "version", "WITHCURSOR", "COUNT", "1500", "MAXIDLE", "30000", "SORTBY"}
	field := "unique_qualifier"
	if sortedBy == "" {
		arguments = append(arguments, "0")
	} else {
		arguments = append(arguments, "2", "@"+sortedBy, "ASC")
		field = "state"
	}
	ask := func() rueidis.RedisResult {
		return b.do(b.client.B().Arbitrary("FT.AGGREGATE").Args(arguments...).Build())
	}
	answer := ask()
	if err := answer.Error(); err != nil && answer.NonRedisError() == nil {
		slog.Error("Error calling ft.aggregate", "e", err, "index", index)
		created := []string{index, "ON", "HASH", "NOHL", "NOFIELDS", "NOFREQS", "NOOFFSETS", "TEMPORARY", "86400", "PREFIX", "1", "aa_", "SCHEMA", field, "TAG"}
		if sortedBy != "" {
			created = append(created, sortedBy, "TAG", "SORTABLE")
		}
		if err := b.do(b.client.B().Arbitrary("FT.CREATE").Args(created...).Build()).Error(); err != nil && !strings.Contains(err.Error(), "already exists") {
			return nil, err
		}
		answer = ask()
	}
	found := []string{}
	for {
		page, err := answer.ToArray()
		if err != nil {
			return nil, err
		}
		if len(page) != 2 {
			return nil, fmt.Errorf("FT.AGGREGATE answered with %d parts", len(page))
		}
		for _, text := range texts(page[0]) {
			var told record
			if json.Unmarshal([]byte(text), &told) == nil && told.Operation.Uuid != "" {
				found = append(found, told.Operation.Uuid)
			}
		}
		cursor, err := page[1].AsInt64()
		if err != nil || cursor == 0 {
			return found, err
		}
		answer = b.do(b.client.B().Arbitrary("FT.CURSOR", "READ").Args(index, strconv.FormatInt(cursor, 10)).Build())
	}
}

// texts returns all strings in an answer, whose shape differs between the versions of the protocol.
func texts(in rueidis.RedisMessage) (found []string) {
	if parts, err := in.ToMap(); err == nil {
		for _, part := range parts {
			found = append(found, texts(part)...)
		}
	} else if parts, err := in.ToArray(); err == nil {
		for _, part := range parts {
			found = append(found, texts(part)...)
		}
	} else if text, err := in.ToString(); err == nil {
		found = append(found, text)
	}
	return found
}

// matchable returns the queued actions that may be matched, and ends the others, which have no client any more.
func (b *backend) matchable(s *scheduler, ids []string) (found []*action) {
	for _, id := range ids {
		wish := s.actions[id]
		if wish == nil {
			if wish = b.load(id); wish == nil {
				continue
			}
			s.actions[id] = wish
		}
		if wish.Stage != queued {
			continue
		}
		if len(wish.watchers) == 0 && time.Since(wish.asked) > seconds(s.config.ClientTimeout) {
			last, _ := b.do(b.client.B().Hget().Key(key("ck", id)).Field("data").Build()).AsInt64()
			if wish.asked = time.Unix(last, 0); time.Since(wish.asked) > seconds(s.config.ClientTimeout) {
				slog.Warn("Operation timed out having no more clients listening", "operation_id", id)
				s.end(wish, failure(codes.DeadlineExceeded,
					fmt.Sprintf("Operation timed out %v seconds of having no more clients listening", s.config.ClientTimeout)))
				continue
			}
		}
		found = append(found, wish)
	}
	return found
}

// write writes an action as it is. It returns errStale if another scheduler has changed the action meanwhile.
func (b *backend) write(wish *action) error {
	if b.away() && b.patience < time.Second {
		return errors.New("Redis is away")
	}
	var told record
	told.Info.Properties, told.Info.Priority, told.Info.Inserted = wish.Properties, wish.Priority, at(wish.Queued)
	name := &qualifier{wish.instance, "Sha256", blob(wish.digest)}
	label := fmt.Sprintf("%s_SHA256_%s_%d_c", wish.instance, wish.digest.Hash, wish.digest.SizeBytes)
	if wish.cacheable {
		told.Info.Qualifier.Cacheable = name
	} else {
		told.Info.Qualifier.Uncacheable = name
	}
	told.Operation.Uuid = wish.ID
	told.SortKey = uint64(uint32(wish.Priority)^1<<31)<<32 | uint64(uint32(wish.Queued.Unix())^0xffffffff)
	told.Updated, told.KeptAlive, told.Attempts = at(wish.since), at(wish.asked), wish.failures
	if wish.workerID != "" {
		told.Worker = &wish.workerID
	}
	told.State.Stage, told.State.Changed, told.State.Digest = stageName(wish.Stage), at(wish.since), name.Digest
	live := int64(0)
	var response []byte
	if wish.Stage == completed {
		told.State.Stage = map[string]any{"Completed": map[string]any{}}
		response, _ = proto.Marshal(wish.operation)
		live = wish.retain
	}
	data, err := json.Marshal(told)
	if err != nil {
		return err
	}
	fields := []string{
		strconv.FormatInt(wish.version, 10), strconv.FormatInt(live, 10), "data", string(data),
		"state", wish.Stage, "sort_key", fmt.Sprintf("%016x", told.SortKey), "standin", string(response),
	}
	if wish.cacheable {
		fields = append(fields, "unique_qualifier", label)
	}
	done := b.patiently(func() rueidis.RedisResult {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		result := update.Exec(ctx, b.client, []string{key("aa", wish.ID)}, fields)
		b.judge(result.NonRedisError())
		return result
	})
	written, err := done.AsBool()
	switch {
	case err != nil:
		return err
	case !written:
		b.refresh(wish)
		return errStale
	}
	wish.version++
	if err := b.do(b.client.B().Publish().Channel(b.channel).Message(key("aa", wish.ID)).Build()).Error(); err != nil {
		slog.Warn("The other schedulers were not told", "operation_id", wish.ID, "err", err)
	}
	return nil
}

// load returns an action as Redis has it, or nil.
func (b *backend) load(id string) *action {
	names := []string{"version", "data", "state", "standin"}
	values, err := b.do(b.client.B().Hmget().Key(key("aa", id)).Field(names...).Build()).AsStrSlice()
	if err != nil || len(values) != len(names) {
		return nil
	}
	fields := map[string]string{}
	for index, name := range names {
		fields[name] = values[index]
	}
	var told record
	if json.Unmarshal([]byte(fields["data"]), &told) != nil {
		return nil
	}
	found := &action{
		ID: id, Properties: told.Info.Properties, Priority: told.Info.Priority, Queued: told.Info.Inserted.time(),
		Stage: fields["state"], since: told.State.Changed.time(), failures: told.Attempts, asked: told.KeptAlive.time(),
		watchers: map[chan *longrunningpb.Operation]bool{}, redis: b,
	}
	name := told.Info.Qualifier.Cacheable
	if found.cacheable = name != nil; !found.cacheable {
		name = told.Info.Qualifier.Uncacheable
	}
	if name == nil {
		return nil
	}
	hash, size, _ := strings.Cut(name.Digest, "-")
	number, _ := strconv.ParseInt(size, 10, 64)
	found.instance, found.digest = name.Instance, &repb.Digest{Hash: hash, SizeBytes: number}
	found.version, _ = strconv.ParseInt(fields["version"], 10, 64)
	if told.Worker != nil {
		found.workerID = *told.Worker
	}
	switch found.Stage {
	case completed:
		found.operation = &longrunningpb.Operation{}
		if proto.Unmarshal([]byte(fields["standin"]), found.operation) != nil {
			return nil
		}
	case executing:
		found.set(repb.ExecutionStage_EXECUTING, nil)
	default:
		found.set(repb.ExecutionStage_QUEUED, nil)
	}
	return found
}

// refresh updates an action to its present state in Redis.
func (b *backend) refresh(wish *action) {
	if b.away() {
		return
	}
	now := b.load(wish.ID)
	if now == nil || now.version == wish.version {
		return
	}
	wish.Stage, wish.since, wish.failures, wish.workerID, wish.version = now.Stage, now.since, now.failures, now.workerID, now.version
	wish.operation = now.operation
	if wish.worker != nil && wish.worker.ID != wish.workerID {
		wish.worker = nil
	}
	wish.announce()
}

// equal returns the unfinished action in Redis that is equal to wish, or nil. Like the original, it always asks Redis.
func (b *backend) equal(s *scheduler, wish *action) (*action, error) {
	if !wish.cacheable {
		return nil, nil
	}
	label := fmt.Sprintf("%s_SHA256_%s_%d_c", wish.instance, wish.digest.Hash, wish.digest.SizeBytes)
	found, err := b.search(byAction, "@unique_qualifier:{ "+label+" }", "")
	for _, id := range found {
		other := s.actions[id]
		if other == nil {
			other = b.load(id)
		}
		if other != nil && other.Stage != completed {
			return other, nil
		}
	}
	return nil, err
}

// named writes to Redis that a client's name leads to an action.
func (b *backend) named(client string, wish *action) error {
	text, _ := json.Marshal(map[string]string{"Uuid": wish.ID})
	name := key("cid", client)
	if err := b.do(b.client.B().Hset().Key(name).FieldValue().FieldValue("data", string(text)).Build()).Error(); err != nil {
		return err
	}
	return b.do(b.client.B().Expire().Key(name).Seconds(int64(namedFor.Seconds())).Build()).Error()
}

// find returns the action that a client's name leads to, or nil.
func (b *backend) find(s *scheduler, client string) *action {
	var told struct{ Uuid string } //nolint:staticcheck // the original's name
	text, err := b.do(b.client.B().Hget().Key(key("cid", client)).Field("data").Build()).ToString()
	if err != nil || json.Unmarshal([]byte(text), &told) != nil {
		return nil
	}
	if wish := s.actions[told.Uuid]; wish != nil {
		return wish
	}
	wish := b.load(told.Uuid)
	if wish != nil {
		s.actions[wish.ID] = wish
	}
	return wish
}

// keepAlive tells Redis every 10 seconds which actions clients wait for. It also tells the clients what became of their
// actions if the scheduler could not hear of that. The keys have no time to live.
func (b *backend) keepAlive(s *scheduler) {
	for _, wish := range s.actions {
		if len(wish.watchers) == 0 || time.Since(wish.asked) < keptAlive || b.away() {
			continue
		}
		wish.asked = time.Now()
		if wish.Stage != completed {
			now := strconv.FormatInt(wish.asked.Unix(), 10)
			err := b.do(b.client.B().Hset().Key(key("ck", wish.ID)).FieldValue().FieldValue("data", now).Build()).Error()
			if err != nil {
				slog.Warn("Failed to update client keepalive (non-versioned)", "e", err)
			}
			b.refresh(wish)
		}
		if wish.untold {
			wish.send()
		}
	}
}

// remove deletes an action from Redis.
func (b *backend) remove(wish *action) error {
	return b.do(b.client.B().Del().Key(key("aa", wish.ID)).Build()).Error()
}
