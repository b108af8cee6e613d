import {type FileFindings, show} from './problems.ts';

/** A variable with the line it was set on. */
export interface Assignment {
	readonly value: string;
	readonly line: number;
}

/** Refused on one line; the parser goes on with the next, to tell of every bad line at once. */
class LineError extends Error {
	readonly line: number;
	readonly remedy: string;
	constructor(line: number, message: string, remedy: string) {
		super(message);
		this.line = line;
		this.remedy = remedy;
	}
}

/** Where an expansion, a command or a redirection would begin: the file is meant to be sourced by a shell. */
const active: Record<string, string> = {
	$: 'an expansion ("$")',
	'`': 'a command substitution',
	';': 'a second command (";")',
	'&': 'a background command ("&")',
	'|': 'a pipe ("|")',
	'<': 'a redirection ("<")',
	'>': 'a redirection (">")',
	'(': 'a subshell ("(")',
	')': 'a subshell (")")',
};

/**
 * Reads `cluster.env`: assignments in POSIX shell quoting, as a shell that sources the file would, but without
 * running or expanding anything. What a shell would run or expand is a problem that names the line.
 * The last of two equal names wins, with a warning.
 */
export function parseClusterEnv(text: string, findings: FileFindings): ReadonlyMap<string, Assignment> {
	const entries = new Map<string, Assignment>();
	const reader = new ShellReader(text);
	while (!reader.isAtEnd && !findings.isFull) {
		try {
			const assignment = reader.readAssignment();
			if (!assignment) continue;
			const {name, value, line} = assignment;
			const before = entries.get(name);
			if (before) findings.warn(line, `${name} is set again (first on line ${before.line}); this one counts`);
			entries.set(name, {value, line});
		} catch (error) {
			if (!(error instanceof LineError)) throw error;
			findings.problem(error.line, error.message, error.remedy);
			reader.skipLine();
		}
	}
	return entries;
}

const anyCharacter = /[\s\S]/y;

class ShellReader {
	readonly #text: string;
	#offset = 0;
	#line = 1;

	constructor(text: string) {
		this.#text = text;
	}

	get isAtEnd(): boolean {
		return this.#offset >= this.#text.length;
	}

	/** The next assignment, or undefined after blanks, a comment or the end of a line. */
	readAssignment(): {name: string; value: string; line: number} | undefined {
		this.#match(/[ \t\r]*/y);
		if (this.isAtEnd || this.#take('\n')) return undefined;
		if (this.#peek() === '#') {
			this.skipLine();
			return undefined;
		}
		this.#match(/export[ \t]+/y);
		const line = this.#line;
		const name = this.#match(/[A-Za-z_][A-Za-z0-9_]*(?==)/y);
		if (name === '')
			throw new LineError(line, `${show(this.#restOfLine())} is not NAME=VALUE`, 'keep only assignments in this file');
		this.#take('=');
		return {name, value: this.#readWord(name), line};
	}

	skipLine(): void {
		const end = this.#text.indexOf('\n', this.#offset);
		if (end === -1) this.#offset = this.#text.length;
		else {
			this.#offset = end + 1;
			this.#line++;
		}
	}

	#readWord(name: string): string {
		const parts: string[] = [];
		if (this.#peek() === '~') this.#refuse(name, 'a home directory ("~")');
		for (;;) {
			// Line ends of Windows, and the blank before a comment or another assignment, end the word.
			if (this.isAtEnd || /[ \t\n\r]/.test(this.#peek())) return parts.join('');
			const plain = this.#match(/[^\s'"\\$`;&|<>()]+/y);
			if (plain !== '') parts.push(plain);
			else if (this.#take("'")) parts.push(this.#readSingleQuoted(name));
			else if (this.#take('"')) parts.push(this.#readDoubleQuoted(name));
			else if (this.#take('\\')) parts.push(this.#readEscape(anyCharacter));
			else {
				const what = active[this.#peek()];
				if (what) this.#refuse(name, what);
				// Blanks that no shell knows as such (U+00A0 and its kin) are part of the word.
				parts.push(this.#match(anyCharacter));
			}
		}
	}

	#readSingleQuoted(name: string): string {
		const line = this.#line;
		const content = this.#match(/[^']*/y);
		if (!this.#take("'")) this.#refuseOpenQuote(name, line);
		return content;
	}

	#readDoubleQuoted(name: string): string {
		const line = this.#line;
		const parts: string[] = [];
		for (;;) {
			parts.push(this.#match(/[^"\\$`]+/y));
			if (this.#take('"')) return parts.join('');
			if (this.isAtEnd) this.#refuseOpenQuote(name, line);
			if (!this.#take('\\')) this.#refuse(name, active[this.#peek()]!);
			// Within double quotes a backslash escapes only these; before anything else it stands for itself.
			parts.push(/[$`"\\\n]/.test(this.#peek()) ? this.#readEscape(anyCharacter) : '\\');
		}
	}

	/** After a backslash: the character itself; an escaped line end is no character at all. */
	#readEscape(one: RegExp): string {
		const character = this.#match(one);
		return character === '\n' ? '' : character;
	}

	#refuse(name: string, what: string): never {
		throw new LineError(
			this.#line,
			`the value of ${name} holds ${what}, which only a shell could carry out`,
			'write the value out, in single quotes',
		);
	}

	#refuseOpenQuote(name: string, line: number): never {
		throw new LineError(
			line,
			`the value of ${name} has a quote that is never closed`,
			'the file may be cut short: copy it again',
		);
	}

	#restOfLine(): string {
		const end = this.#text.indexOf('\n', this.#offset);
		return this.#text.slice(this.#offset, end === -1 ? undefined : end).slice(0, 100);
	}

	#peek(): string {
		return this.#text[this.#offset] ?? '';
	}

	#take(character: string): boolean {
		if (this.#peek() !== character) return false;
		this.#match(anyCharacter);
		return true;
	}

	/** @param pattern - sticky. @returns what it matched, or '' */
	#match(pattern: RegExp): string {
		pattern.lastIndex = this.#offset;
		const found = pattern.exec(this.#text)?.[0] ?? '';
		this.#offset += found.length;
		for (let at = found.indexOf('\n'); at !== -1; at = found.indexOf('\n', at + 1)) this.#line++;
		return found;
	}
}
