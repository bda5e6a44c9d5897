package worker

import (
	"time"

	"example.org/orchestrator/app/internal/contract"
	"example.org/orchestrator/app/internal/serve"
	"example.org/orchestrator/config"
	"example.org/orchestrator/handoff"
)

// limits say how long each part of a handoff may take. Every hook has a deadline
// of its own, with an error that names the hook; these limits are for a process
// that cannot keep its deadlines. They follow from the table of hooks.
type limits struct {
	modules   int // number of modules, in the generation that has more
	hook      time.Duration
	run       time.Duration
	drain     time.Duration
	maxFreeze time.Duration
	stopMost  time.Duration // 0 for no limit but that of the hooks
}

// use makes the settings those of a reload.
func (l *limits) use(t terms) {
	l.hook, l.run, l.drain, l.maxFreeze = t.Hook, t.Run, t.Drain, t.MaxFreeze
}

// slack is for what a process does besides its hooks.
func (l limits) slack() time.Duration { return l.hook + time.Second }

// one is for a process to call one hook.
func (l limits) one() time.Duration { return l.hook + l.slack() }

// quiet is for the end of Run and of everything else that works, and for the first
// Shutdown.
func (l limits) quiet() time.Duration { return l.one() + 2*l.hook + l.run + cutTime }

func (l limits) bound(hooks ...contract.Hook) time.Duration {
	return contract.Bound(l.modules, l.hook, hooks...) + l.slack()
}

// start is for exec, the start of main and the first message.
func (l limits) start() time.Duration { return startTime }

// startTime is long: the machine may be busy with a build, and a large program
// has much to read.
const startTime = 10 * time.Second

// leave is for a candidate that gives up, to shut its modules down.
func (l limits) leave() time.Duration {
	return l.bound(contract.InStage(contract.Old, handoff.StageShutdown)...)
}

func (l limits) prepare() time.Duration {
	return l.bound(contract.InStage(contract.Candidate, handoff.StagePrepare)...)
}

// hold is for all attempts to hold together, with the cutting of what does not
// end.
func (l limits) hold() time.Duration { return 2*l.drain + 4*l.maxFreeze + cutTime }

// cutTime is more than the cutting of everything in flight takes, step by step.
const cutTime = 3 * time.Second

// shutdown is also for a module that is being started again meanwhile, which
// holds generation.starting for the time of two more hooks.
func (l limits) shutdown() time.Duration {
	return l.bound(contract.InStage(contract.Old, handoff.StageShutdown)...) + 2*l.hook + l.run + cutTime
}

func (l limits) export() time.Duration {
	return l.bound(contract.InStage(contract.Old, handoff.StageExport)...)
}

// restore is from the states to the candidate's message that all modules are
// healthy.
func (l limits) restore() time.Duration {
	return l.bound(contract.InStage(contract.Candidate, handoff.StageRestore, handoff.StageInitialize, handoff.StageHealthy)...)
}

// rollback is for starting the modules again in the old process. A state is read
// from what the candidate returned, and if that fails from what was exported.
func (l limits) rollback() time.Duration {
	return l.bound(contract.Prepare, contract.Restore, contract.Restore, contract.Initialize)
}

// commit is for the candidate to accept after the commit. Each batch of
// connections has a deadline of its own.
func (l limits) commit() time.Duration { return commitTime }

const (
	commitTime = 5 * time.Second

	// moveTime is more than the passing on of all connections takes. It bounds
	// the wait for a process that stands still.
	moveTime = time.Minute

	// finalTime is for the candidate to become final, and for the old generation
	// to confirm it.
	finalTime = 5 * time.Second
)

// answer is for the candidate to say that it is healthy.
func (l limits) answer() time.Duration { return l.bound(contract.Healthy) }

// handBack is for a candidate to hold, stop its modules and export their states.
func (l limits) handBack() time.Duration {
	return l.drain + l.hook + l.shutdown() + l.export()
}

// silence is the longest time between two messages of the old generation to the
// candidate.
func (l limits) silence() time.Duration {
	return l.hold() + l.shutdown() + l.export() + l.rollback() + l.commit() + moveTime + l.slack()
}

// forceTime is how long requests may take to end after a stop has cancelled
// them.
const forceTime = time.Second

// allHooks is how long the program takes to stop if every hook takes its whole time.
func (l limits) allHooks() time.Duration {
	stages := contract.InStage(contract.Old, handoff.StageShutdown)
	return l.drain + forceTime + contract.Bound(l.modules, l.hook, stages...) + time.Second
}

// stop is the longest that a graceful stop of the program may take.
func (l limits) stop() time.Duration {
	if l.stopMost > 0 {
		return min(l.stopMost, l.allHooks())
	}
	return l.allHooks()
}

// headroom is how many descriptors stay free of connections: for what modules
// open, and for one reload.
const headroom = 64

// clientLimits returns the limits of clients. It must be called before there are
// any.
func clientLimits(app config.App) serve.Limits {
	l := serve.Limits{
		Head:      app.ReadHeaderTimeout,
		HeadBytes: int(app.MaxHeaderBytes),
		Transfer:  app.BodyTimeout,
		Idle:      app.IdleTimeout,
		Conns:     app.MaxConnections,
	}
	if free := handoff.FreeFiles(); l.Conns == 0 && free != nil {
		l.Conns = max(*free-headroom, 1)
	}
	return l
}
