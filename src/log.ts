import pino from 'pino';
import {AgentError} from './errors.ts';
import {isJournal} from './journal.ts';

export type Logger = pino.Logger;
export type LogLevel = 'debug' | 'info' | 'warn' | 'error' | 'silent';

export interface LogSettings {
	readonly level: LogLevel;
	/** `json`: one pino object a line. `text`: `<N>level part: message key=value`, for people and the journal. */
	readonly format: 'json' | 'text';
	/** File descriptor; 2 for the daemon. */
	readonly fd?: number;
}

/**
 * A value that must never be printed. It shows itself as `[redacted]` to strings, JSON, template text and
 * `util.inspect`; `reveal()` is the only way in, and easy to search for.
 */
export class Secret {
	readonly #value: string;
	constructor(value: string) {
		this.#value = value;
	}
	reveal(): string {
		return this.#value;
	}
	toString(): string {
		return '[redacted]';
	}
	toJSON(): string {
		return '[redacted]';
	}
	[Symbol.for('nodejs.util.inspect.custom')](): string {
		return '[redacted]';
	}
}

/** The second net: fields with such names are redacted whatever they hold. The first net is {@link Secret}. */
const redacted = [
	'token',
	'key',
	'keyPem',
	'privateKey',
	'authorization',
	'*.token',
	'*.key',
	'*.keyPem',
	'*.privateKey',
	'*.authorization',
];

/** syslog priorities, which journald reads from a `<N>` prefix. */
const priority: Record<number, string> = {20: '<7>', 30: '<6>', 40: '<4>', 50: '<3>', 60: '<2>'};

export function createLogger({level, format, fd = 2}: LogSettings): Logger {
	// Synchronous: a line must not be lost when the process ends, and a transport would start a thread.
	const destination = pino.destination({fd, sync: true});
	const options: pino.LoggerOptions = {
		level,
		base: null,
		timestamp: pino.stdTimeFunctions.isoTime,
		redact: {paths: redacted, censor: '[redacted]'},
		serializers: {err: serializeError},
	};
	if (format === 'json') return pino({...options, formatters: {level: label => ({level: label})}}, destination);
	const journal = isJournal(fd);
	return pino(options, {write: (line: string) => destination.write(renderText(line, journal))});
}

/** A logger that says nothing; the default of tests. */
export const silentLogger: Logger = pino({level: 'silent'});

/** Our own errors say all in one sentence, causes included; of any other the stack is wanted. */
function serializeError(error: unknown): unknown {
	if (!(error instanceof AgentError))
		return error instanceof Error ? pino.stdSerializers.err(error) : {message: String(error)};
	return {message: error.message, code: error.code, hint: error.hint};
}

function renderText(line: string, journal: boolean): string {
	const {level, time, part, msg, err, ...fields} = JSON.parse(line) as Record<string, unknown>;
	const head = journal
		? (priority[level as number] ?? '<6>')
		: `${String(time)} ${pino.levels.labels[level as number]?.padEnd(5) ?? ''} `;
	const rest = Object.entries(fields).map(([name, value]) => ` ${name}=${renderValue(value)}`);
	const {message, code, hint} = (err ?? {}) as Record<string, unknown>;
	const reason = Object.entries({reason: message, code, hint})
		.filter(([, value]) => value !== undefined)
		.map(([name, value]) => ` ${name}=${renderValue(value)}`)
		.join('');
	return `${head}${part ? `${String(part)}: ` : ''}${String(msg ?? '')}${rest.join('')}${reason}\n`;
}

function renderValue(value: unknown): string {
	const text = typeof value === 'string' ? value : JSON.stringify(value);
	return text !== undefined && /[\s"=]/.test(text) ? JSON.stringify(text) : String(text);
}
