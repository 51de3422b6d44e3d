package health

import (
	"strings"
	"testing"
)

func wants(t testing.TB, method, expect, body string) wanted {
	t.Helper()
	set, err := parseStatuses(expect)
	if err != nil {
		t.Fatal(err)
	}
	return wanted{method: method, expect: &set, body: body}
}

func TestAnswersAreJudged(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\n"
	for _, tc := range []struct {
		name   string
		expect string
		body   string
		answer string
		ended  bool
		over   bool
		why    string // "": it passes, where it is over
	}{
		{name: "the status line is enough", answer: ok, over: true},
		{name: "half a status line is not", answer: "HTTP/1.1 20"},
		{name: "a wrong status", answer: "HTTP/1.1 500 Oops\r\n", over: true, why: "status 500, want 200-399"},
		{name: "without a reason", answer: "HTTP/1.0 204\r\n", over: true},
		{name: "a set", expect: "200,301-302", answer: "HTTP/1.1 302 Found\r\n", over: true},
		{name: "not in the set", expect: "200,301-302", answer: "HTTP/1.1 204 No\r\n", over: true, why: "status 204, want 200,301-302"},
		{name: "another protocol", answer: "SSH-2.0-OpenSSH_9.2\r\n", over: true, why: "not HTTP"},
		{name: "another protocol, seen early", answer: "220", over: true, why: "not HTTP"},
		{name: "no number", answer: "HTTP/1.1 abc OK\r\n", over: true, why: "not HTTP"},
		{name: "closed at once", ended: true, over: true, why: "closed before an answer"},
		{name: "closed within", answer: "HTTP/1.1", ended: true, over: true, why: "closed within"},
		{name: "an interim answer", answer: "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"},
		{name: "and the real one", answer: "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 404 No\r\n", over: true, why: "status 404"},

		{name: "text is there", body: "well", answer: ok + "Content-Length: 9\r\n\r\nall well\n", over: true},
		{name: "text may come yet", body: "well", answer: ok + "Content-Length: 9\r\n\r\nall w"},
		{name: "text is not there", body: "ill", answer: ok + "Content-Length: 9\r\n\r\nall well\n", over: true, why: `does not contain "ill"`},
		{name: "text until close may come yet", body: "ill", answer: ok + "\r\nall well\n"},
		{name: "text until close is not there", body: "ill", answer: ok + "\r\nall well\n", ended: true, over: true, why: "does not contain"},
		{name: "text over two chunks", body: "all well", answer: ok + "Transfer-Encoding: chunked\r\n\r\n4\r\nall \r\n5\r\nwell\n\r\n", over: true},
		{name: "chunks that may come yet", body: "all well", answer: ok + "Transfer-Encoding: chunked\r\n\r\n4\r\nall \r\n"},
		{name: "chunks are over", body: "ill", answer: ok + "Transfer-Encoding: chunked\r\n\r\n4\r\nall \r\n0\r\n\r\n", over: true, why: "does not contain"},
		{name: "no head yet", body: "well", answer: ok},
		{name: "text beyond 64 KiB", body: "well", answer: ok + "\r\n" + strings.Repeat("x", maxBody) + "well", over: true, why: "does not contain"},
		{name: "text at the end of 64 KiB", body: "well", answer: ok + "\r\n" + strings.Repeat("x", maxBody-4) + "well", over: true},
		{name: "an endless head", body: "well", answer: ok + "X: " + strings.Repeat("x", maxHead), over: true, why: "longer than"},
		{name: "no body at all", body: "well", answer: "HTTP/1.1 204 No\r\n\r\n", over: true, why: "does not contain"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.expect == "" {
				tc.expect = "200-399"
			}
			out, over := wants(t, "GET", tc.expect, tc.body).judge([]byte(tc.answer), tc.ended)
			if over != tc.over {
				t.Fatalf("over is %t, want %t (%+v)", over, tc.over, out)
			}
			if over && (out.passed != (tc.why == "") || !strings.Contains(out.why, tc.why)) {
				t.Errorf("judged %+v, want %q", out, tc.why)
			}
		})
	}
}

// Whatever comes, and in whatever pieces, is judged at its end, and a judgement does not turn round.
func FuzzAnswersAreJudged(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nwell"), "well", 17)
	f.Add([]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nwell\r\n0\r\n\r\n"), "ill", 50)
	f.Add([]byte("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 500 No\r\n\r\n"), "", 30)
	f.Fuzz(func(t *testing.T, answer []byte, body string, cutAt int) {
		w := wants(t, "GET", "200-399", body)
		whole, over := w.judge(answer, true)
		if !over {
			t.Fatal("not judged although nothing more comes")
		}
		if len(answer) == 0 {
			return
		}
		part, over := w.judge(answer[:min(uint(cutAt), uint(len(answer)))], false)
		if over && part.passed && !whole.passed {
			t.Fatalf("a part passes and the whole does not: %+v", whole)
		}
	})
}

func TestStatusSets(t *testing.T) {
	for _, bad := range []string{"", "x", "99", "600", "300-200", "200,", "200-", "-200", "200-299-399"} {
		if _, err := parseStatuses(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
	s, err := parseStatuses("200, 204,300-399")
	if err != nil {
		t.Fatal(err)
	}
	for code, want := range map[int]bool{200: true, 201: false, 204: true, 299: false, 300: true, 399: true, 400: false, 0: false, 1000: false} {
		if s.has(code) != want {
			t.Errorf("%d: %t, want %t", code, !want, want)
		}
	}
}

func TestProbesAreValidated(t *testing.T) {
	for _, tc := range []struct {
		name  string
		probe Probe
		want  string // "" is fine
	}{
		{"defaults", Probe{Type: TypeTCP}, ""},
		{"none", Probe{}, ""},
		{"short interval", Probe{Type: TypeTCP, Interval: time99}, "interval must be"},
		{"default timeout with a short interval", Probe{Type: TypeTCP, Interval: MinInterval}, ""},
		{"long timeout", Probe{Type: TypeTCP, Interval: MinInterval, Timeout: 11 * MinInterval}, "timeout must be"},
		{"rise", Probe{Type: TypeTCP, Rise: 101}, "rise and fall"},
		{"http through the VIP", Probe{Type: TypeHTTP, ThroughVIP: true}, "use tcp, udp or icmp"},
		{"a path that splits the request", Probe{Type: TypeHTTP, Path: "/\r\nX: y"}, "path must"},
		{"a host that splits the request", Probe{Type: TypeHTTP, Host: "a\r\nX: y"}, "host must"},
		{"a method that splits the request", Probe{Type: TypeHTTP, Method: "GET / "}, "method must"},
		{"a path without slash", Probe{Type: TypeHTTP, Path: "x"}, "path must"},
		{"expect", Probe{Type: TypeHTTPS, Expect: "ok"}, "expect must"},
		{"a long datagram", Probe{Type: TypeUDP, Send: strings.Repeat("x", 1401)}, "send must"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := tc.probe.Validate()
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("says %v, want %q", err, tc.want)
			}
		})
	}
}

const time99 = MinInterval - 1
