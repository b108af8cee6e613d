import {mkdtempSync, openSync, rmdirSync, rmSync, writeFileSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {AgentError, reasonOf} from '../errors.ts';

/**
 * Where files are expected, and behind it what is in memory: rules have to go also when the disk is full. systemd names the
 * directory of a unit; several are parted by colons (systemd.exec(5)). SELinux on Debian lets nft read nothing in /dev/shm.
 */
const places = (): readonly string[] => [
	...(process.env['RUNTIME_DIRECTORY']?.split(':') ?? []),
	tmpdir(),
	'/dev/shm',
	'/run',
	'/var/tmp',
];

/**
 * A program's input as a file without a name. Through a pipe, our death could hand it the first half, and half a
 * script may be a valid one that only deletes.
 * @returns a descriptor to read from, or undefined when there is nothing to read
 * @throws AgentError `capture.no_room`
 */
export function spool(input: string, directories = places()): number | undefined {
	if (input === '') return undefined;
	const failures: string[] = [];
	for (const parent of directories) {
		try {
			return write(input, parent);
		} catch (error) {
			failures.push(reasonOf(error));
		}
	}
	throw new AgentError(
		'capture.no_room',
		`put rules into a file for the program that loads them: ${failures.join('; ')}`,
		{
			hint: 'free some room in one of these, or set TMPDIR to a directory that can be written',
		},
	);
}

function write(input: string, parent: string): number {
	const directory = mkdtempSync(`${parent}/onramp-`);
	const path = `${directory}/input`;
	try {
		// Whole or not at all: a single write may be cut short by a disk that has just filled up.
		writeFileSync(path, input, {flag: 'wx', mode: 0o600});
		return openSync(path, 'r');
	} finally {
		rmSync(path, {force: true});
		rmdirSync(directory);
	}
}
