package web

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"errors"
	"fmt"
	"html/template"
	"io/fs"
	"net/http"
	"path"
	"time"

	"pontoon/fsm"
)

//go:embed ui
var ui embed.FS

// contentTypes are those of the page's files. They are not asked of the
// operating system, whose tables differ.
var contentTypes = map[string]string{
	".css": "text/css; charset=utf-8",
	".js":  "text/javascript; charset=utf-8",
	".svg": "image/svg+xml",
}

// page is what the status page shows before its first message arrives, and all
// that a browser without JavaScript shows.
type page struct {
	Version   string
	Self      fsm.NodeID
	NoCluster bool
	Summary
}

// servePage serves the status page and its files.
func (s *server) servePage() error {
	tmpl, err := template.ParseFS(ui, "ui/index.html")
	if err != nil {
		return fmt.Errorf("parse status page: %w", err)
	}
	s.mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		var b bytes.Buffer
		if err := tmpl.Execute(&b, s.page(r.Context())); err != nil {
			s.Logger.Error("status page failed", "err", err)
			NewProblem(fmt.Errorf("render status page: %w", err)).write(w)
			return
		}
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = b.WriteTo(w) // the client went away: nobody is left to tell
	})
	return fs.WalkDir(ui, "ui/static", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		return s.serveFile(name)
	})
}

// page gathers what is known now.
func (s *server) page(ctx context.Context) page {
	st, err := s.readStatus(ctx)
	switch {
	case errors.Is(err, ErrNoCluster):
		return page{Version: s.Version, NoCluster: true, Summary: Summary{Level: LevelWarn, Text: "This node is in no cluster"}}
	case err != nil:
		return page{Version: s.Version, Summary: Summary{
			Level: LevelBad, Text: "The status cannot be read", Notes: []string{oneLine(err.Error())},
		}}
	}
	return page{Version: s.Version, Self: st.Self, Summary: st.Summary}
}

// serveFile serves one embedded file below /static/. Browsers ask again each
// time and get it again only when it has changed, so that the page of a new
// version never runs with files of the old.
func (s *server) serveFile(name string) error {
	content, err := ui.ReadFile(name)
	if err != nil {
		return fmt.Errorf("read status page: %w", err)
	}
	typ, ok := contentTypes[path.Ext(name)]
	if !ok {
		return fmt.Errorf("serve %s: no content type for it", name)
	}
	sum := sha256.Sum256(content)
	etag := `"` + base64.RawURLEncoding.EncodeToString(sum[:12]) + `"`
	base := path.Base(name)
	s.mux.HandleFunc("GET /static/"+base, func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Type", typ)
		h.Set("Cache-Control", "no-cache")
		h.Set("ETag", etag)
		http.ServeContent(w, r, base, time.Time{}, bytes.NewReader(content))
	})
	return nil
}
