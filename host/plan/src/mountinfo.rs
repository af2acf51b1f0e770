//! /proc/PID/mountinfo as text: parsed here, read elsewhere. See proc(5).
