package build

// Learned waits until what a go build has begun in the background is done.
func (d *Direct) Learned() { d.tasks.Wait() }
