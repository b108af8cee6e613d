import {createReadStream, type ReadStream} from 'node:fs';
import {readFile, stat} from 'node:fs/promises';
import {dirname, resolve} from 'node:path';
import {AgentError, reasonOf, systemCode} from '../../errors.ts';
import {fetchStatus, sendCommand} from '../../status/index.ts';
import type {Flags} from '../index.ts';
import {loadFrom} from '../load.ts';
import {replaceFile} from './bundle-files.ts';
import {systemd} from './service.ts';
import {examineToken} from './token.ts';
import {untilReady} from './until-ready.ts';

interface BringOptions {
	readonly waitMs: number;
	readonly signal: AbortSignal;
}

const say = (text: string): boolean => process.stdout.write(`${text}\n`);

const maxTokenBytes = 65_536;

/** Puts a token where the agent reads it, and wakes the agent. Returns the exit code. */
export async function bringToken(file: string, flags: Flags, {waitMs, signal}: BringOptions): Promise<number> {
	const {config} = await loadFrom(flags);
	const text = await readToken(file);
	const place = file === '-' ? 'standard input' : resolve(file);
	const {claims, problems} = examineToken(text, place, config, new Date());
	const fatal = problems.filter(({severity}) => severity === 'error');
	if (fatal.length > 0) {
		const list = fatal.map(({message, remedy}) => `\n  ${place}: ${message}\n    → ${remedy}`).join('');
		throw new AgentError('config.invalid', `join: the token cannot be used${list}`, {hint: 'nothing was changed'});
	}
	for (const {message} of problems) say(`warning: ${place}: ${message}`);
	const {tokenPath} = config.controlPlane;
	const until = claims?.expiresAt ? `, valid until ${claims.expiresAt.toISOString()}` : '';
	if (await putToken(tokenPath, text)) say(`token: written to ${tokenPath}${until}`);
	else say(`nothing has changed: ${tokenPath} has this token already`);

	const {controlSocketPath} = config.status;
	const report = await fetchStatus(controlSocketPath);
	const {state, notAfter} = (report.parts['identity'] ?? {}) as {readonly state?: string; readonly notAfter?: string};
	if (state === 'serving') say(`the agent needs no token now: its certificate is valid until ${notAfter}`);
	else await sendCommand(controlSocketPath, 'retry');
	const isReady = await untilReady({
		controlSocketPath,
		waitMs,
		say,
		signal,
		formerPid: undefined,
		failure: systemd.failure,
	});
	return isReady || waitMs === 0 ? 0 : 1;
}

async function readToken(file: string): Promise<string> {
	try {
		const bytes = await readBounded(file === '-' ? process.stdin : createReadStream(file));
		if (bytes.length > maxTokenBytes) throw new Error(`larger than ${maxTokenBytes} bytes`);
		return bytes.toString('latin1');
	} catch (cause) {
		throw new AgentError('config.unreadable', `read token ${file}: ${reasonOf(cause)}`, {
			cause,
			hint: 'name a file that holds the token and nothing else; nothing was changed',
		});
	}
}

/** The file may be a pipe, as the shell's `<(kubectl create token …)` is one. */
async function readBounded(stream: NodeJS.ReadStream | ReadStream): Promise<Buffer> {
	const chunks: Buffer[] = [];
	let length = 0;
	for await (const chunk of stream as AsyncIterable<Buffer>) {
		chunks.push(chunk);
		length += chunk.length;
		if (length > maxTokenBytes) break;
	}
	return Buffer.concat(chunks);
}

/** True if the file is another one now. */
async function putToken(path: string, text: string): Promise<boolean> {
	try {
		const before = await readFile(path, 'latin1').catch((error: unknown) => {
			if (systemCode(error) === 'ENOENT') return undefined;
			throw error;
		});
		if (before === text) return false;
		const {gid} = await stat(before === undefined ? dirname(path) : path);
		await replaceFile(path, text, 0o640, gid);
		return true;
	} catch (cause) {
		throw new AgentError('config.unreadable', `write token ${path}: ${reasonOf(cause)}`, {
			cause,
			hint: 'run it as root; the agent has to be able to read it',
		});
	}
}
