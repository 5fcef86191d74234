// Package records is what the senders share: arguments, the records of stdin, and how to end.
package records

import (
	"bufio"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"os"
	"strings"
)

// Arguments are BOOTSTRAP TOPIC CODEC PARTITIONER plain|commit|abort.
type Arguments struct {
	Bootstrap                      []string
	Topic, Codec, Partitioner, End string
}

// Header has a name of any bytes, as Kafka's protocol does.
type Header struct {
	Name  string
	Value []byte
}

// Record has no key where Key is nil.
type Record struct {
	Key, Value []byte
	Headers    []Header
}

// Given are the arguments of this process.
func Given() Arguments {
	a := os.Args
	return Arguments{strings.Split(a[1], ","), a[2], a[3], a[4], a[5]}
}

// Read returns the records of stdin. A line is one, its fields in base64 and apart by tabs: key or "-",
// value, then name and value of each header.
func Read() (all []Record) {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		fields := strings.Split(lines.Text(), "\t")
		one := Record{Value: decode(fields[1])}
		if fields[0] != "-" {
			one.Key = decode(fields[0])
		}
		for i := 2; i < len(fields); i += 2 {
			one.Headers = append(one.Headers, Header{string(decode(fields[i])), decode(fields[i+1])})
		}
		all = append(all, one)
	}
	Check(lines.Err())
	return all
}

func decode(text string) []byte {
	bytes, err := base64.StdEncoding.DecodeString(text)
	Check(err)
	return bytes
}

// TransactionalID is one that nobody else has.
func TransactionalID() string { return rand.Text() }

// Check ends the process when there is an error.
func Check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// Lacks ends the process: the client has no such thing.
func Lacks(what string) {
	fmt.Fprintln(os.Stderr, what)
	os.Exit(3)
}
