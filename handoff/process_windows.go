package handoff

func closeOnExec(...int) {}

func kill(int) {}

func ownGroup() {}

func killGroup(int) {}
