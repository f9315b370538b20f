package main

import (
	"encoding/json"
	"fmt"
	"log"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gomodule/redigo/redis"
)

// The name that NativeLink's index has, but for its fingerprint.
const index = "aa__state_sort_key_standin0"

// mirror writes a scheduler's actions into Redis where NativeLink's Redis backend has them, for those that count them.
// Unlike that one it reads nothing back: each stand-in has a queue of its own.
type mirror struct {
	address string
	reached atomic.Bool
}

func (m *mirror) follow(mirrored *scheduler) {
	for {
		err := m.connected(mirrored)
		m.reached.Store(false)
		log.Printf("stand-in: Redis: %v", err)
		time.Sleep(time.Second)
	}
}

// connected keeps Redis equal to the scheduler until an error.
func (m *mirror) connected(mirrored *scheduler) error {
	limit := redis.DialReadTimeout(5 * time.Second)
	connection, err := redis.DialURL(m.address, limit, redis.DialConnectTimeout(5*time.Second))
	if err != nil {
		return err
	}
	defer connection.Close()
	schema := strings.Fields("ON HASH PREFIX 1 aa_ SCHEMA state TAG sort_key TAG SORTABLE")
	_, err = connection.Do("FT.CREATE", redis.Args{index}.AddFlat(schema)...)
	if err != nil && !strings.Contains(err.Error(), "already exists") {
		return err
	}
	written := map[string]string{}
	for {
		wanted := mirrored.stages()
		for key, action := range wanted {
			if written[key] != action.Stage {
				if err := put(connection, key, action); err != nil {
					return err
				}
				written[key] = action.Stage
			}
		}
		for key := range written {
			if _, there := wanted[key]; !there {
				if err := connection.Send("DEL", key); err != nil {
					return err
				}
				delete(written, key)
			}
		}
		if _, err := connection.Do("PING"); err != nil { // which ends the pipeline, and finds out without one too
			return err
		}
		m.reached.Store(true)
		time.Sleep(200 * time.Millisecond)
	}
}

func put(connection redis.Conn, key string, wish action) error {
	data, err := json.Marshal(map[string]any{"action_info": map[string]any{
		"platform_properties": wish.Properties,
		"priority":            wish.Priority,
	}})
	if err != nil {
		return err
	}
	order := fmt.Sprintf("%08x%016x", uint32(wish.Priority), wish.Queued.UnixNano())
	return connection.Send("HSET", key, "state", wish.Stage, "data", data, "sort_key", order)
}

// stages are copies of all actions by their key in Redis.
func (s *scheduler) stages() map[string]action {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	found := map[string]action{}
	for _, wish := range s.actions {
		found["aa_"+wish.ID] = *wish
	}
	return found
}

// follow starts to mirror a scheduler whose backend is Redis; nil for one in memory.
func backend(settings schedulerConfig, mirrored *scheduler, named stores) (*mirror, error) {
	chosen := settings.ExperimentalBackend.Redis
	if chosen == nil {
		return nil, nil
	}
	found, err := named.get(chosen.Store)
	if err != nil {
		return nil, err
	}
	where, is := found.(queue)
	if !is || len(where.Addresses) == 0 {
		return nil, fmt.Errorf("store %s is no redis_store with addresses", chosen.Store)
	}
	made := &mirror{address: os.ExpandEnv(where.Addresses[0])}
	go made.follow(mirrored)
	return made, nil
}
