import {readdirSync, readFileSync} from 'node:fs';
import {join} from 'node:path';
import {fileURLToPath} from 'node:url';
import test from 'ava';
import ts from 'typescript';
import {settings} from '../../src/config/settings.ts';

const source = fileURLToPath(new URL('../../src', import.meta.url));
const keys: ReadonlySet<string> = new Set(settings.map(({key}) => key));
const rooms = [...new Set(settings.map(({key}) => key.split('.')[0]))];

/** What looks like a setting: `proxy.log-level`, and also `proxy.logLevel`, which nobody can set. Paths, hosts and URLs do not. */
const settingLike = new RegExp(
	`(?<![\\w./@-])(?:${rooms.join('|')}|controlPlane)\\.[a-zA-Z]+(?:-[a-zA-Z]+)*(?![\\w./(-])`,
	'g',
);

/** What people are told to do, by file and line. */
function* remediesOf(path: string): Generator<{readonly place: string; readonly text: string}> {
	const file = ts.createSourceFile(path, readFileSync(path, 'utf8'), ts.ScriptTarget.Latest, true);
	const found: {place: string; text: string}[] = [];
	const collect = (node: ts.Node): void => {
		if (ts.isStringLiteralLike(node) || ts.isTemplateHead(node) || ts.isTemplateMiddleOrTemplateTail(node)) {
			const {line} = file.getLineAndCharacterOfPosition(node.getStart());
			found.push({place: `${path}:${line + 1}`, text: node.text});
		}
		ts.forEachChild(node, collect);
	};
	const walk = (node: ts.Node): void => {
		const isNamed = ts.isPropertyAssignment(node) || ts.isVariableDeclaration(node);
		if (isNamed && node.initializer && /^(hint|remedy)$|(Hint|Remedy)$/.test(node.name.getText()))
			collect(node.initializer);
		else ts.forEachChild(node, walk);
	};
	walk(file);
	yield* found;
}

test('hints › name only settings that there are, by the name that sets them', t => {
	const files = readdirSync(source, {recursive: true, encoding: 'utf8'}).filter(name => name.endsWith('.ts'));
	const remedies = files.flatMap(name => [...remediesOf(join(source, name))]);
	const named = remedies.flatMap(({place, text}) => (text.match(settingLike) ?? []).map(name => ({place, name})));
	t.true(named.length > 10, 'they are found at all');
	t.deepEqual(
		named.filter(({name}) => !keys.has(name)).map(({place, name}) => `${place}: ${name}`),
		[],
	);
});
