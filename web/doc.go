// Package web is how people and programs look at a node and change the
// cluster: the HTTP API with its OpenAPI document, the status page, the
// metrics and the health endpoints.
//
// The package holds no state of the cluster and decides nothing about it. It
// reads through Backend, turns writes into fsm commands and leaves every
// judgement about their content to fsm, so that the API, the command line and
// the log refuse the same things with the same words. It opens no socket
// either: NewHandler returns an http.Handler, once for each level of access,
// and the caller serves it.
//
// # Serving
//
// The handler sets its own deadlines: a request body must arrive within ten
// seconds, an answer must be taken within thirty (five minutes where the
// cluster is being formed or left), and a stream within fifteen seconds of each
// message. The http.Server around it should set ReadHeaderTimeout (5 s) and
// IdleTimeout (2 min) and leave ReadTimeout and WriteTimeout at zero. Streams
// last until the client goes or the request's context ends: a server that wants
// to shut down in order cancels its BaseContext first, then calls Shutdown.
package web
