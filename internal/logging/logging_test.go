package logging

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

func TestLevelHoldsBackWhatIsBelow(t *testing.T) {
	levels := []string{"debug", "info", "warn", "error"}
	for i, level := range levels {
		var buf bytes.Buffer
		log, err := New(&buf, Config{Level: level})
		if err != nil {
			t.Fatal(err)
		}
		log.Debug("m")
		log.Info("m")
		log.Warn("m")
		log.Error("m")
		if got, want := strings.Count(buf.String(), "\n"), len(levels)-i; got != want {
			t.Errorf("level %s wrote %d records, want %d", level, got, want)
		}
	}
}

func TestJSONRecordIsOneObject(t *testing.T) {
	var buf bytes.Buffer
	log, err := New(&buf, Config{Format: "json"})
	if err != nil {
		t.Fatal(err)
	}
	log.Info("joined", "node", "lb1")
	var record map[string]any
	if err := json.Unmarshal(buf.Bytes(), &record); err != nil {
		t.Fatalf("record %q: %v", buf.String(), err)
	}
	if record["msg"] != "joined" || record["node"] != "lb1" || record["time"] == nil {
		t.Errorf("record %v lacks msg, node or time", record)
	}
}

func TestOmitTimeLeavesOnlyTheRecordsOwnTimeOut(t *testing.T) {
	var buf bytes.Buffer
	log, err := New(&buf, Config{OmitTime: true})
	if err != nil {
		t.Fatal(err)
	}
	log.Info("probe", "level2", 1)
	if got, want := buf.String(), "level=INFO msg=probe level2=1\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestUnknownWordsAreRefused(t *testing.T) {
	for _, cfg := range []Config{{Format: "xml"}, {Level: "verbose"}} {
		if _, err := New(&bytes.Buffer{}, cfg); err == nil {
			t.Errorf("%+v accepted", cfg)
		}
	}
}
