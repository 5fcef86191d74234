// Package walk is what each program in Go has in common: who is led, how, and the record of it. Lines of stdin and
// stdout, and the habits, are as in python/walk.py.
package walk

import (
	"bufio"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"slices"
	"strings"
)

// Person is whom a program leads, and how.
type Person struct {
	URL, Token, Habit string
	Most              int
}

// Headers say who calls, where people sign in.
func (p Person) Headers() map[string]string {
	if p.Token == "-" {
		return nil
	}
	return map[string]string{"Authorization": "Bearer " + p.Token}
}

// Call calls a tool, and returns the structured content.
type Call func(tool string, arguments map[string]any) (any, error)

type answer struct {
	Outcome, Visitor string
	Step             *struct{ ID string }
}

var done = []string{"advanced", "finished", "repeated", "already-finished"}

// Must ends the program where there is an error.
func Must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

// LeadAll leads everybody on stdin, one after another. `connect` opens a connection, and returns what ends it.
func LeadAll(connect func(Person) (Call, func())) {
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		var person Person
		fields := strings.Fields(lines.Text())
		person.URL, person.Token, person.Habit = fields[0], fields[1], fields[2]
		Must(fmt.Sscan(fields[3], &person.Most))
		if person.Habit == "anew" || person.Habit == "loses" {
			lead(person, func(tool string, arguments map[string]any) (any, error) {
				answer, err := alone(connect, person, tool, arguments)
				if err != nil && person.Habit == "loses" {
					return alone(connect, person, tool, arguments)
				}
				return answer, err
			})
			continue
		}
		call, end := connect(person)
		lead(person, call)
		end()
	}
}

func alone(
	connect func(Person) (Call, func()), person Person, tool string, arguments map[string]any,
) (any, error) {
	call, end := connect(person)
	defer end()
	return call(tool, arguments)
}

func lead(person Person, call Call) {
	ask := func(tool string, arguments map[string]any) (found answer) {
		text := Must(json.Marshal(Must(call(tool, arguments))))
		Must(0, json.Unmarshal(text, &found))
		return found
	}
	steps := []string{}
	last := ask("start_walkthrough", map[string]any{})
	for last.Step != nil && len(steps) < person.Most {
		step := last.Step.ID
		arguments := map[string]any{}
		if person.Habit != "unnamed" {
			arguments["current_step_id"] = step
		}
		if last.Visitor != "" && person.Habit != "forgets" {
			arguments["visitor"] = last.Visitor
		}
		if person.Habit == "repeats" {
			ask("get_next_step", arguments)
		}
		last = ask("get_next_step", arguments)
		if slices.Contains(done, last.Outcome) {
			steps = append(steps, step)
		}
	}
	fmt.Println(string(Must(json.Marshal(map[string]any{"steps": steps, "last": last.Outcome}))))
}
